"""Progress on stderr: a live bar on a terminal, else lines."""

from __future__ import annotations

import math
import os
import sys
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from tdmr1_cli.output import plus_minus

if TYPE_CHECKING:
    from tdmr1_core.engine import Engine
    from tdmr1_core.records import IterationReport
    from tdmr1_core.runs.evaluation.evaluate import Evaluation

STDERR = 2
TREND = 10
"""Iterations that the trend looks back."""
SPARKS = "▁▂▃▄▅▆▇█"
SPARKLINE = 24
WAITING_LINES = 20.0
"""Seconds between two lines about the same waiting, where there is no terminal."""
LINES_A_STAGE = 4
"""How many lines tell of a stage where there is no terminal."""


class Quiet:
    """Shows nothing; the observer of --quiet and the base of the others."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def started(self, engine: Engine) -> None:
        """Everything is loaded."""

    def iteration(self, report: IterationReport) -> None:
        """An iteration is over."""

    def evaluating(self, role: str, prompt_set: str) -> None:
        """An evaluation begins."""

    def evaluated(self, step: int, evaluation: Evaluation) -> None:
        """An evaluation is over."""

    def saved(self, checkpoint: Path) -> None:
        """A checkpoint is written."""

    def waiting(self, text: str) -> None:
        """A reward waits for somebody."""

    def stopping(self) -> None:
        """A stop was asked for."""


class Lines(Quiet):
    """One line for everything that happens."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rewards: deque[float] = deque(maxlen=max(SPARKLINE, TREND + 1))
        self._told: set[str] = set()
        self._total = self._first = 0
        self._waited: dict[str, float] = {}
        self._began = time.monotonic()

    def started(self, engine: Engine) -> None:
        """Say what is about to be done."""
        config, batch = engine.config, engine.config.batch
        self._total, self._first, self._began = config.iterations, engine.iteration_index, time.monotonic()
        what = "+".join(reward.name for reward in config.rewards) or "distillation"
        verb = f"continuing after iteration {self._first}" if self._first else "starting"
        self._say(
            f"{verb}: {engine.entry.name}, {what}, {config.iterations} iterations of {batch.groups} groups × "
            f"{batch.group_size} images, in {self._folder}"
        )
        if engine.model_files is not None and engine.model_files.lora is not None:
            self._say(f"the generator starts from {engine.model_files.lora}")
        self._say("Ctrl-C finishes the iteration and saves; a second one leaves at once")

    def iteration(self, report: IterationReport) -> None:
        """Show its numbers, and why updates were left out the first time it happens."""
        for reason in report.skipped:
            if reason not in self._told:
                self._told.add(reason)
                self._say(f"iteration {report.step} left an update out, {reason} (further ones like it are not told)")
        if "reward/mean" in report.metrics:
            self._rewards.append(report.metrics["reward/mean"])
        self._show(report)

    def evaluating(self, role: str, prompt_set: str) -> None:
        """Say so: it takes a while."""
        self._say(f"evaluating on {prompt_set} …")

    def evaluated(self, step: int, evaluation: Evaluation) -> None:
        """Say what came out. Time is counted from the first iteration on."""
        if step == self._first:
            self._began = time.monotonic()
        for reward, value in evaluation.measures.items():
            self._say(f"{evaluation.prompt_set} at iteration {step}: {reward} {plus_minus(value)} (n = {value.n})")

    def saved(self, checkpoint: Path) -> None:
        """Say where."""
        self._say(f"saved {checkpoint}")

    def waiting(self, text: str) -> None:
        """Say so, the same thing only now and then: what comes after a colon is how far it is."""
        what, now = text.partition(":")[0], time.monotonic()
        if now - self._waited.get(what, -math.inf) >= WAITING_LINES:
            self._waited[what] = now
            self._say(text)

    def stopping(self) -> None:
        """Say that it was heard, through no stream: one that the signal interrupted in a write would raise."""
        os.write(STDERR, b"\nstopping after this iteration; once more to leave at once\n")

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def _show(self, report: IterationReport) -> None:
        left = _duration(self._seconds_left(report.step))
        self._say(f"iteration {report.step}/{self._total}  {self._numbers(report)}  {left} left")

    def _numbers(self, report: IterationReport) -> str:
        metrics, parts = report.metrics, []
        if self._rewards:
            parts.append(f"reward {self._rewards[-1]:.3f} {trend(list(self._rewards))}")
        if "zero_std_ratio" in metrics:
            parts.append(f"zero-std {metrics['zero_std_ratio']:.0%}")
        if not self._rewards and "loss/generator" in metrics:
            parts.append(f"generator loss {metrics['loss/generator']:.4f}")
        return "  ".join([*parts, f"{metrics['images_per_second']:.1f} images/s"])

    def _seconds_left(self, step: int) -> float:
        return (time.monotonic() - self._began) / max(step - self._first, 1) * (self._total - step)


class Bar(Lines):
    """A live bar with the newest numbers below it; what happens is printed above."""

    def __init__(self, folder: Path, console: Console) -> None:
        super().__init__(folder)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self._task = self._progress.add_task("iteration", total=None, left="")
        self._details = Text("")
        self._checkpoint = "none yet"
        self._live = Live(Group(self._progress, self._details), console=console, refresh_per_second=4)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def started(self, engine: Engine) -> None:
        """Give the bar its length."""
        super().started(engine)
        self._progress.update(self._task, total=self._total, completed=self._first)

    def evaluating(self, role: str, prompt_set: str) -> None:
        """Show it where the numbers are."""
        self._details.plain = f"evaluating on {prompt_set} …"

    def waiting(self, text: str) -> None:
        """Show it where the numbers are, up to date."""
        self._details.plain = text

    def saved(self, checkpoint: Path) -> None:
        """Keep the newest."""
        self._checkpoint = checkpoint.name

    def _say(self, text: str) -> None:
        self._live.console.print(Text(text))

    def _show(self, report: IterationReport) -> None:
        left = f"{_duration(self._seconds_left(report.step))} left"
        self._progress.update(self._task, completed=report.step, left=left)
        self._details.plain = (
            f"{self._numbers(report)}  last checkpoint {self._checkpoint}\n{sparkline(list(self._rewards))}"
        )


class Stages:
    """Progress of the stages of one piece of work: a bar with rate and time left on a terminal, else lines.

    Called with the stage's name, how much of it is done, and how much there is.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, TextColumn("{task.fields[pace]}"), console=self._console)
        self._tasks: dict[str, TaskID] = {}
        self._began: dict[str, float] = {}

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._progress.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Tell how far a stage is."""
        began = self._began.setdefault(stage, time.monotonic())
        pace = _pace(done, total, time.monotonic() - began)
        if self._console.is_terminal:
            if stage not in self._tasks:
                self._tasks[stage] = self._progress.add_task(stage, pace="")
            self._progress.update(self._tasks[stage], completed=done, total=total, pace=pace)
        elif done == 0 or done * LINES_A_STAGE // total > (done - 1) * LINES_A_STAGE // total:
            print(f"{stage}: {done}/{total}  {pace}".rstrip(), file=sys.stderr, flush=True)


def build_observer(folder: Path, *, quiet: bool) -> Quiet:
    """The observer that fits where stderr goes."""
    console = Console(stderr=True)
    if quiet:
        return Quiet()
    return Bar(folder, console) if console.is_terminal else Lines(folder)


def trend(values: list[float]) -> str:
    """An arrow and the change against ten values ago, or as far back as there are values; empty for one alone."""
    if len(values) < 2:
        return ""
    back = min(TREND, len(values) - 1)
    change = values[-1] - values[-1 - back]
    arrow = "→" if abs(change) < 5e-4 else "↗" if change > 0 else "↘"
    return f"{arrow} {change:+.3f} in {back}"


def sparkline(values: list[float]) -> str:
    """The last values as a line of blocks, from their least to their greatest."""
    shown = values[-SPARKLINE:]
    if not shown:
        return ""
    low, span = min(shown), max(shown) - min(shown)
    return "".join(SPARKS[int((value - low) / span * (len(SPARKS) - 1)) if span else 0] for value in shown)


def _pace(done: int, total: int, seconds: float) -> str:
    """Rate and time left, once something was done in some time."""
    if not done or not seconds:
        return ""
    return f"{done / seconds:.3g}/s  {_duration(seconds / done * (total - done))} left"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
