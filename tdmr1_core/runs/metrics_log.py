"""The log files of a run: metrics, evaluations and guard readings as JSONL, and the same numbers for TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

from tdmr1_core.durable_files import append_durable, replace_durable, translate_write_errors
from tdmr1_core.runs.jsonl import keep_lines, step_of

METRICS, EVALUATIONS, GUARD = "metrics.jsonl", "evaluations.jsonl", "guard.jsonl"
ALARMS = "guard/alarms"


@dataclass(eq=False)
class Tracker:
    """Appends to the log files of a run folder. Every line is flushed to the disk, so that a crash loses none.

    Call `go_back` before anything else, also in a new folder.
    """

    folder: Path
    _: KW_ONLY
    tensorboard: bool
    _board: Any = field(default=None, init=False)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Write the metrics of one iteration."""
        self._append(METRICS, [{"step": step, **values}])
        self._scalars(step, values, "")

    def evaluations(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write all evaluations after an iteration at once. A row names its role and prompt set as text."""
        self._append(EVALUATIONS, [{"step": step, **row} for row in rows])
        for row in rows:
            numbers = {key: value for key, value in row.items() if isinstance(value, (int, float))}
            self._scalars(step, numbers, f"evaluation/{row.get('role', '')}/{row.get('prompts', '')}/")

    def guard(self, step: int, values: Mapping[str, Any]) -> None:
        """Write a reading of the guard, and the number of its alarms into the metrics of the same iteration."""
        self._append(GUARD, [{"step": step, **values}])
        numbers = {key: value for key, value in values.items() if isinstance(value, (int, float))}
        self._scalars(step, {**numbers, "alarms": len(values["alarms"])}, "guard/")
        path = self.folder / METRICS
        lines = path.read_bytes().splitlines() if path.is_file() else []
        row = json.loads(lines[-1]) if lines else {}
        if row.get("step") == step:
            lines[-1] = json.dumps({**row, ALARMS: len(values["alarms"])}).encode()
            with translate_write_errors(self.folder):
                replace_durable(path, b"".join(line + b"\n" for line in lines))

    def go_back(self, step: int, *, evaluated: int) -> None:
        """Delete the metrics after iteration `step` and the evaluations after iteration `evaluated`.

        A resumed run writes them again. TensorBoard's log starts after `evaluated`, too.
        """
        with translate_write_errors(self.folder):
            kept = keep_lines(self.folder / METRICS, lambda row: step_of(row) <= step)
            for name in (EVALUATIONS, GUARD):
                keep_lines(self.folder / name, lambda row: step_of(row) <= evaluated)
        if not self.tensorboard:
            return
        from torch.utils.tensorboard import SummaryWriter

        with translate_write_errors(self.folder):
            self._board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=evaluated + 1)
        for row in kept:
            if row["step"] > evaluated:
                self._scalars(row["step"], {name: row[name] for name in row if name != "step"}, "")

    def close(self) -> None:
        """Close the TensorBoard log."""
        if self._board is not None:
            with translate_write_errors(self.folder):
                self._board.close()

    def _append(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        with translate_write_errors(self.folder):
            append_durable(self.folder / name, "".join(json.dumps(row) + "\n" for row in rows).encode())

    def _scalars(self, step: int, values: Mapping[str, float], prefix: str) -> None:
        if self._board is None:
            return
        with translate_write_errors(self.folder):
            for name, value in values.items():
                self._board.add_scalar(prefix + name, value, step)
