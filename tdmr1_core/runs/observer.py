"""Shows the progress of a run. Subclass `Observer` and override the methods you need."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tdmr1_core.engine import Engine
    from tdmr1_core.records import IterationReport
    from tdmr1_core.runs.evaluation.evaluate import Evaluation


class Observer:
    """Receives the events of a run. The methods of this class do nothing."""

    def started(self, engine: Engine) -> None:
        """Everything is loaded. Iterations begin at `engine.iteration_index`."""

    def iteration(self, report: IterationReport) -> None:
        """An iteration has ended."""

    def evaluating(self, role: str, prompt_set: str) -> None:
        """An evaluation begins."""

    def evaluated(self, step: int, evaluation: Evaluation) -> None:
        """An evaluation has ended."""

    def saved(self, checkpoint: Path) -> None:
        """A checkpoint is written."""

    def alarmed(self, step: int, alarm: str) -> None:
        """The guard has raised an alarm."""

    def tracked(self, address: str) -> None:
        """A tracker reports the address of the run, such as "wandb: https://…"."""

    def waiting(self, text: str) -> None:
        """A reward reports what it waits for. Called from the reward's thread."""

    def stopping(self) -> None:
        """A signal asked for a stop. The iteration is finished and saved first. May be called during a write."""
