"""What a run writes line by line: metrics, evaluations, and the same numbers for TensorBoard."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

METRICS, EVALUATIONS, GUARD = "metrics.jsonl", "evaluations.jsonl", "guard.jsonl"
ALARMS = "guard/alarms"


class Tracker:
    """Appends to a run folder's files; every line is flushed, so that a crash loses none."""

    def __init__(self, folder: Path, *, tensorboard: bool) -> None:
        self._folder = folder
        self._board: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"))

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """One iteration's numbers."""
        self._append(METRICS, {"step": step, **values})
        self._scalars(step, values, "")

    def evaluation(self, step: int, values: Mapping[str, Any]) -> None:
        """One evaluation's numbers; text among them names role and prompt set."""
        self._append(EVALUATIONS, {"step": step, **values})
        numbers = {key: value for key, value in values.items() if isinstance(value, (int, float))}
        self._scalars(step, numbers, f"evaluation/{values.get('role', '')}/{values.get('prompts', '')}/")

    def guard(self, step: int, values: Mapping[str, Any]) -> None:
        """What the guard saw at an evaluation; how many alarms also stands with the metrics of the iteration before."""
        self._append(GUARD, {"step": step, **values})
        numbers = {key: value for key, value in values.items() if isinstance(value, (int, float))}
        self._scalars(step, {**numbers, "alarms": len(values["alarms"])}, "guard/")
        lines = self._lines(METRICS)
        if lines and _step(lines[-1]) == step:
            row = {**json.loads(lines[-1]), ALARMS: len(values["alarms"])}
            self._rewrite(METRICS, [*lines[:-1], json.dumps(row)])

    def cut_after(self, step: int) -> None:
        """Drop the lines after an iteration: a resumed run writes them again."""
        for name in (METRICS, EVALUATIONS, GUARD):
            if lines := self._lines(name):
                self._rewrite(name, [line for line in lines if _step(line) <= step])

    def close(self) -> None:
        """Finish TensorBoard's file."""
        if self._board is not None:
            self._board.close()

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        with (self._folder / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def _lines(self, name: str) -> list[str]:
        path = self._folder / name
        return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []

    def _rewrite(self, name: str, lines: Sequence[str]) -> None:
        """Put other lines into a file, which is a whole one at any time."""
        building = self._folder / f".{name}.tmp"
        building.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        os.replace(building, self._folder / name)

    def _scalars(self, step: int, values: Mapping[str, float], prefix: str) -> None:
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(prefix + name, value, step)


def _step(line: str) -> float:
    """The step of a line, or infinity for one that a crash cut short."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
