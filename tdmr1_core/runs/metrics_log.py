"""The log files of a run: metrics, evaluations and guard readings as JSONL, and the same numbers for trackers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tdmr1_core.durable_files import append_durable, replace_durable, translate_write_errors
from tdmr1_core.errors import warn
from tdmr1_core.runs.jsonl import Row, as_lines, keep_lines, step_of
from tdmr1_rewards.errors import printable
from tdmr1_rewards.texts.documents import parse_json

if TYPE_CHECKING:
    from tdmr1_core.runs.tracking.client import Trackers

METRICS, EVALUATIONS, GUARD = "metrics.jsonl", "evaluations.jsonl", "guard.jsonl"
IMAGE_SCORES = "image_scores.jsonl"
"""The score of every image of every evaluation."""
LOGS = METRICS, EVALUATIONS, GUARD, IMAGE_SCORES
ALARMS = "guard/alarms"
LogEvent = tuple[str, int, Mapping[str, Any]]
"""The log file, the iteration and the numbers of a line, or of the lines of one evaluation."""


@dataclass(eq=False)
class RunLog:
    """Appends to the log files of a run folder. Every line is flushed to the disk, so that a crash loses none.

    Call `open_board` before anything else, or `go_back` in a folder that has log files. `tensorboard` is whether this
    process writes TensorBoard files; `trackers` are those that another process calls.
    """

    folder: Path
    _: KW_ONLY
    tensorboard: bool
    trackers: Trackers | None = None
    _board: Any = field(default=None, init=False)
    _repeated: int | None = field(default=None, init=False)
    """The iteration whose evaluation a resumed run repeats; its earlier lines stay until the new ones are written."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Write the metrics of one iteration."""
        self._append(METRICS, [{"step": step, **values}])
        self._publish(METRICS, step, values)

    def complete_metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Write the metrics of the last iteration after an error, in place of what the error left of them."""
        with translate_write_errors(self.folder):
            keep_lines(self.folder / METRICS, lambda row: step_of(row) < step)
        self._append(METRICS, [{"step": step, **values}])

    def evaluations(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write all evaluations after an iteration at once. A row names its role and prompt set as text."""
        self._append_evaluated(EVALUATIONS, step, rows)
        self._publish(EVALUATIONS, step, _evaluation_numbers(rows))

    def image_scores(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the scores of the images of all evaluations after an iteration (`Evaluation.score_row`)."""
        self._append_evaluated(IMAGE_SCORES, step, rows)

    def guard(self, step: int, values: Mapping[str, Any]) -> None:
        """Write a reading of the guard, and the number of its alarms into the metrics of the same iteration."""
        self._append_evaluated(GUARD, step, [values])
        self._publish(GUARD, step, _guard_numbers(values))
        path = self.folder / METRICS
        lines = path.read_bytes().splitlines() if path.is_file() else []
        row = parse_json(lines[-1]) if lines else {}
        if row.get("step") == step:
            lines[-1] = json.dumps({**row, ALARMS: len(values["alarms"])}).encode()
            with translate_write_errors(self.folder):
                replace_durable(path, b"".join(line + b"\n" for line in lines))

    def image(self, name: str, step: int, path: Path) -> None:
        """Send an image file to the trackers."""
        if self.trackers is not None:
            self.trackers.image(name, step, path)

    def go_back(self, step: int, *, evaluated: int) -> None:
        """Delete all lines after iteration `step`: a resumed run writes them again.

        It also repeats evaluations after iteration `evaluated`: their lines stay until new ones replace them.
        TensorBoard's log starts after `evaluated`; other trackers get what they have not received.
        """
        self._repeated = step if evaluated < step else None
        with translate_write_errors(self.folder):
            metrics, evaluations, readings, _ = (
                keep_lines(self.folder / name, lambda row: step_of(row) <= step) for name in LOGS
            )
        self.open_board(purge_step=evaluated + 1)
        for row in metrics:
            if row["step"] > evaluated:
                self._write_scalars(row["step"], {name: row[name] for name in row if name != "step"})
        if self.trackers is not None:
            self.trackers.history(_past_events(metrics, evaluations, readings))

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

    def close(self, *, wait: bool = True) -> None:
        """Close the TensorBoard log, and the trackers, which with `wait` False may end later."""
        try:
            if self._board is not None:
                with translate_write_errors(self.folder):
                    self._board.close()
        finally:
            if self.trackers is not None:
                self.trackers.close(wait=wait)

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

    def _publish(self, log: str, step: int, values: Mapping[str, float]) -> None:
        """Send the numbers of a line in a log file to TensorBoard and the trackers."""
        self._write_scalars(step, values)
        if self.trackers is not None:
            self.trackers.numbers(log, step, values)

    def _write_scalars(self, step: int, values: Mapping[str, float]) -> None:
        if self._board is None:
            return
        with translate_write_errors(self.folder):
            for name, value in values.items():
                self._board.add_scalar(printable(name), value, step)


def _evaluation_numbers(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """The numbers of all evaluations after an iteration, with role and prompt set in their names."""
    return {
        f"evaluation/{row.get('role', '')}/{row.get('prompts', '')}/{name}": value
        for row in rows
        for name, value in row.items()
        if isinstance(value, int | float) and name != "step"
    }


def _guard_numbers(reading: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a reading of the guard, and that of its alarms."""
    numbers = {name: value for name, value in reading.items() if isinstance(value, int | float) and name != "step"}
    return {f"guard/{name}": value for name, value in (numbers | {"alarms": len(reading.get("alarms", ()))}).items()}


def _past_events(metrics: Sequence[Row], evaluations: Sequence[Row], readings: Sequence[Row]) -> list[LogEvent]:
    """What the lines of the log files say to trackers, in the order of iterations."""
    by_step: dict[int, list[Row]] = {}
    for row in evaluations:
        by_step.setdefault(row["step"], []).append(row)
    events = [
        *((METRICS, row["step"], row) for row in metrics),
        *((EVALUATIONS, step, _evaluation_numbers(rows)) for step, rows in by_step.items()),
        *((GUARD, row["step"], _guard_numbers(row)) for row in readings),
    ]
    return sorted(events, key=lambda event: event[1])
