"""What a run writes line by line: metrics, evaluations, and the same numbers for TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tdmr1_core.runs.storage import append_lasting, replace_lasting, told_of

METRICS, EVALUATIONS, GUARD = "metrics.jsonl", "evaluations.jsonl", "guard.jsonl"
ALARMS = "guard/alarms"


class Tracker:
    """Appends to a run folder's files; the disk has every line before anything goes on, so that a crash loses none."""

    def __init__(self, folder: Path, *, tensorboard: bool) -> None:
        self._folder = folder
        self._board: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            with told_of(folder):
                self._board = SummaryWriter(str(folder / "tensorboard"))

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """One iteration's numbers."""
        self._append(METRICS, [{"step": step, **values}])
        self._scalars(step, values, "")

    def evaluations(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """All that was evaluated after an iteration, at once; text in a row names role and prompt set."""
        self._append(EVALUATIONS, [{"step": step, **row} for row in rows])
        for row in rows:
            numbers = {key: value for key, value in row.items() if isinstance(value, (int, float))}
            self._scalars(step, numbers, f"evaluation/{row.get('role', '')}/{row.get('prompts', '')}/")

    def guard(self, step: int, values: Mapping[str, Any]) -> None:
        """What the guard saw at an evaluation; how many alarms also stands with the metrics of the iteration before."""
        self._append(GUARD, [{"step": step, **values}])
        numbers = {key: value for key, value in values.items() if isinstance(value, (int, float))}
        self._scalars(step, {**numbers, "alarms": len(values["alarms"])}, "guard/")
        lines = self._lines(METRICS)
        if lines and _step(lines[-1]) == step:
            row = {**json.loads(lines[-1]), ALARMS: len(values["alarms"])}
            self._rewrite(METRICS, [*lines[:-1], json.dumps(row).encode()])

    def go_back(self, step: int, *, evaluated: int) -> None:
        """Drop the metrics after one iteration and the evaluations after another: a resumed run writes them again."""
        for name, last in ((METRICS, step), (EVALUATIONS, evaluated), (GUARD, evaluated)):
            self._rewrite(name, [line for line in self._lines(name) if _step(line) <= last])

    def close(self) -> None:
        """Finish TensorBoard's file."""
        if self._board is not None:
            with told_of(self._folder):
                self._board.close()

    def _append(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        with told_of(self._folder):
            append_lasting(self._folder / name, "".join(json.dumps(row) + "\n" for row in rows).encode())

    def _lines(self, name: str) -> list[bytes]:
        path = self._folder / name
        return path.read_bytes().splitlines() if path.is_file() else []

    def _rewrite(self, name: str, lines: Sequence[bytes]) -> None:
        """Put other lines into a file, which is a whole one at any time."""
        path, content = self._folder / name, b"".join(line + b"\n" for line in lines)
        if path.is_file() and path.read_bytes() != content:
            with told_of(self._folder):
                replace_lasting(path, content)

    def _scalars(self, step: int, values: Mapping[str, float], prefix: str) -> None:
        if self._board is None:
            return
        with told_of(self._folder):
            for name, value in values.items():
                self._board.add_scalar(prefix + name, value, step)


def _step(line: bytes) -> float:
    """The step of a line, or infinity for one that a crash cut short."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
