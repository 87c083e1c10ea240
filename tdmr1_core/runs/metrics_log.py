"""The log files of a run: metrics, evaluations and guard readings as JSONL, and the same numbers for TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

from tdmr1_core.durable_files import append_durable, replace_durable, translate_write_errors
from tdmr1_core.errors import warn
from tdmr1_core.runs.jsonl import as_lines, keep_lines, step_of
from tdmr1_rewards.errors import printable
from tdmr1_rewards.texts.documents import parse_json

METRICS, EVALUATIONS, GUARD = "metrics.jsonl", "evaluations.jsonl", "guard.jsonl"
IMAGE_SCORES = "image_scores.jsonl"
"""The score of every image of every evaluation."""
LOGS = METRICS, EVALUATIONS, GUARD, IMAGE_SCORES
ALARMS = "guard/alarms"


@dataclass(eq=False)
class Tracker:
    """Appends to the log files of a run folder. Every line is flushed to the disk, so that a crash loses none.

    Call `open_board` before anything else, or `go_back` in a folder that has log files.
    """

    folder: Path
    _: KW_ONLY
    tensorboard: bool
    _board: Any = field(default=None, init=False)
    _repeated: int | None = field(default=None, init=False)
    """The iteration whose evaluation a resumed run repeats; its earlier lines stay until the new ones are written."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Write the metrics of one iteration."""
        self._append(METRICS, [{"step": step, **values}])
        self._scalars(step, values, "")

    def complete_metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Write the metrics of the last iteration after an error, in place of what the error left of them."""
        with translate_write_errors(self.folder):
            keep_lines(self.folder / METRICS, lambda row: step_of(row) < step)
        self._append(METRICS, [{"step": step, **values}])

    def evaluations(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write all evaluations after an iteration at once. A row names its role and prompt set as text."""
        self._append_evaluated(EVALUATIONS, step, rows)
        for row in rows:
            numbers = {key: value for key, value in row.items() if isinstance(value, (int, float))}
            self._scalars(step, numbers, f"evaluation/{row.get('role', '')}/{row.get('prompts', '')}/")

    def image_scores(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the scores of the images of all evaluations after an iteration (`Evaluation.score_row`)."""
        self._append_evaluated(IMAGE_SCORES, step, rows)

    def guard(self, step: int, values: Mapping[str, Any]) -> None:
        """Write a reading of the guard, and the number of its alarms into the metrics of the same iteration."""
        self._append_evaluated(GUARD, step, [values])
        numbers = {key: value for key, value in values.items() if isinstance(value, (int, float))}
        self._scalars(step, {**numbers, "alarms": len(values["alarms"])}, "guard/")
        path = self.folder / METRICS
        lines = path.read_bytes().splitlines() if path.is_file() else []
        row = parse_json(lines[-1]) if lines else {}
        if row.get("step") == step:
            lines[-1] = json.dumps({**row, ALARMS: len(values["alarms"])}).encode()
            with translate_write_errors(self.folder):
                replace_durable(path, b"".join(line + b"\n" for line in lines))

    def go_back(self, step: int, *, evaluated: int) -> None:
        """Delete all lines after iteration `step`: a resumed run writes them again.

        It also repeats evaluations after iteration `evaluated`: their lines stay until new ones replace them.
        TensorBoard's log starts after `evaluated`.
        """
        self._repeated = step if evaluated < step else None
        with translate_write_errors(self.folder):
            kept, *_ = (keep_lines(self.folder / name, lambda row: step_of(row) <= step) for name in LOGS)
        self.open_board(purge_step=evaluated + 1)
        for row in kept:
            if row["step"] > evaluated:
                self._scalars(row["step"], {name: row[name] for name in row if name != "step"}, "")

    def open_board(self, purge_step: int | None = None) -> None:
        """Open TensorBoard's log, if the run has one. What it has from `purge_step` on is not shown any more."""
        if not self.tensorboard:
            return
        from torch.utils.tensorboard import SummaryWriter

        board = str(self.folder / "tensorboard")
        try:
            with translate_write_errors(self.folder):
                self._board = SummaryWriter(board, purge_step=purge_step)
        except UnicodeEncodeError:
            warn(f"TensorBoard needs a folder name in UTF-8, so it gets no metrics: {board}", code="not-writable")

    def close(self) -> None:
        """Close the TensorBoard log."""
        if self._board is not None:
            with translate_write_errors(self.folder):
                self._board.close()

    def _append(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        with translate_write_errors(self.folder):
            append_durable(self.folder / name, as_lines(rows))

    def _append_evaluated(self, name: str, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        added = [{"step": step, **row} for row in rows]
        if step != self._repeated:
            self._append(name, added)
            return
        with translate_write_errors(self.folder):
            keep_lines(self.folder / name, lambda row: step_of(row) < step, added=added)

    def _scalars(self, step: int, values: Mapping[str, float], prefix: str) -> None:
        if self._board is None:
            return
        with translate_write_errors(self.folder):
            for name, value in values.items():
                self._board.add_scalar(printable(prefix + name), value, step)
