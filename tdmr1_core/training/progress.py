"""The progress of a run that a Python program started: text that changes in a notebook, lines on stderr elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tdmr1_core.runs.observer import Observer

if TYPE_CHECKING:
    from tdmr1_core.engine import Engine
    from tdmr1_core.records import IterationReport
    from tdmr1_core.runs.evaluation.evaluate import Evaluation

INTERVAL = 2.0
"""Seconds between two lines outside a notebook, at least; the first and the last iteration always get one."""


class Progress(Observer):
    """Shows iterations, rewards and the time left. `show` gets a line, and whether it replaces the former one."""

    def __init__(self, show: Callable[[str, bool], None] | None = None) -> None:
        self._show = show or notebook_display() or print_lines()
        self._total = self._first = 0
        self._began = time.monotonic()

    def started(self, engine: Engine) -> None:
        """Show the size of the run."""
        config = engine.config
        self._total, self._first, self._began = config.iterations, engine.iteration_index, time.monotonic()
        rewards = "+".join(reward.name for reward in config.rewards)
        images = config.batch.groups * config.batch.group_size
        self._show(f"{engine.entry.name}, {rewards}: {config.iterations} iterations of {images} images", False)

    def iteration(self, report: IterationReport) -> None:
        """Show the reward and the time left."""
        seconds = (time.monotonic() - self._began) / max(1, report.step - self._first)
        reward = f"reward {report.metrics['reward/mean']:.3f}, " if "reward/mean" in report.metrics else ""
        left = seconds * (self._total - report.step)
        text = f"iteration {report.step}/{self._total}: {reward}{seconds:.1f} s per iteration, {left:.0f} s left"
        self._show(text, report.step < self._total)

    def evaluated(self, step: int, evaluation: Evaluation) -> None:
        """Show the rewards. The time left is computed from the end of the first evaluation."""
        if step == self._first:
            self._began = time.monotonic()
        measures = evaluation.measures.items()
        listed = ", ".join(f"{name} {value.mean:.3f} ± {value.stderr:.3f}" for name, value in measures)
        self._show(f"{Path(evaluation.prompt_set).name} after iteration {step}: {listed}", False)

    def waiting(self, text: str) -> None:
        """Show what a reward waits for."""
        self._show(text, True)

    def stopping(self) -> None:
        """Confirm the signal."""
        self._show("stopping after this iteration; interrupt again to stop at once", False)


def print_lines() -> Callable[[str, bool], None]:
    """Prints lines on stderr; of those that replace a former one, at most one every INTERVAL seconds."""
    printed_at = -INTERVAL

    def show(text: str, replaces: bool) -> None:
        nonlocal printed_at
        if replaces and time.monotonic() - printed_at < INTERVAL:
            return
        printed_at = time.monotonic() if replaces else printed_at
        print(text, file=sys.stderr, flush=True)

    return show


def notebook_display() -> Callable[[str, bool], None] | None:
    """Shows text below the cell of a notebook; None outside a notebook."""
    ipython: Any = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is None or not hasattr(shell, "kernel"):
        return None
    from IPython.display import DisplayHandle

    lines: list[str] = [""]
    handle = DisplayHandle()
    is_shown = False

    def show(text: str, replaces: bool) -> None:
        nonlocal is_shown
        lines[-1] = text
        content = {"text/plain": "\n".join(lines)}
        (handle.update if is_shown else handle.display)(content, raw=True)
        is_shown = True
        if not replaces:
            lines.append("")

    return show
