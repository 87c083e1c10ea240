"""Progress on stderr: a live bar on a terminal, lines elsewhere."""

from __future__ import annotations

import math
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from tdmr1_cli.output import message, plus_minus
from tdmr1_cli.streams import interject
from tdmr1_core.runs.observer import Observer
from tdmr1_rewards.errors import printable

if TYPE_CHECKING:
    from tdmr1_core.engine import Engine
    from tdmr1_core.records import IterationReport
    from tdmr1_core.runs.evaluation.evaluate import Evaluation

TREND = 10
"""Iterations that the trend is computed over."""
SPARKS = "▁▂▃▄▅▆▇█"
SPARKLINE = 24
WAITING_LINES = 20.0
"""Seconds between two lines about the same wait, without a terminal."""
LINES_PER_STAGE = 4
"""Lines printed about each stage, without a terminal."""


class Quiet(Observer):
    """Shows nothing: the observer of --quiet, and the base class of the others."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Lines(Quiet):
    """Prints one line for each event."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rewards: deque[float] = deque(maxlen=max(SPARKLINE, TREND + 1))
        self._reported: set[str] = set()
        self._total = self._first = 0
        self._waited: dict[str, float] = {}
        self._began = time.monotonic()

    def started(self, engine: Engine) -> None:
        """Print model, rewards and size of the run."""
        config, batch = engine.config, engine.config.batch
        self._total, self._first, self._began = config.iterations, engine.iteration_index, time.monotonic()
        what = "+".join(reward.name for reward in config.rewards) or "distillation"
        verb = f"resuming after iteration {self._first}" if self._first else "starting"
        self._say(
            f"{verb}: {engine.entry.name}, {what}, {config.iterations} iterations of {batch.groups} groups × "
            f"{batch.group_size} images, in {self._folder}"
        )
        if engine.model_files is not None and engine.model_files.lora is not None:
            self._say(f"the generator starts from {engine.model_files.lora}")
        self._say("Ctrl-C finishes the iteration and saves; a second Ctrl-C exits at once")

    def iteration(self, report: IterationReport) -> None:
        """Print its metrics, and each reason for a skipped update once."""
        for reason in report.skipped:
            if reason not in self._reported:
                self._reported.add(reason)
                self._say(f"iteration {report.step}: update skipped: {reason} (reported once)")
        if "reward/mean" in report.metrics:
            self._rewards.append(report.metrics["reward/mean"])
        self._show(report)

    def evaluating(self, role: str, prompt_set: str) -> None:
        """Print the prompt set."""
        self._say(f"evaluating on {prompt_set} …")

    def evaluated(self, step: int, evaluation: Evaluation) -> None:
        """Print the rewards. The time left is computed from the end of the first evaluation."""
        if step == self._first:
            self._began = time.monotonic()
        for reward, value in evaluation.measures.items():
            self._say(f"{evaluation.prompt_set} at iteration {step}: {reward} {plus_minus(value)} (n = {value.n})")

    def saved(self, checkpoint: Path) -> None:
        """Print the path."""
        self._say(f"saved {checkpoint}")

    def waiting(self, text: str) -> None:
        """Print what is waited for, at most every WAITING_LINES seconds. The text after the colon is the progress."""
        what, now = text.partition(":")[0], time.monotonic()
        if now - self._waited.get(what, -math.inf) >= WAITING_LINES:
            self._waited[what] = now
            self._say(text)

    def stopping(self) -> None:
        """Confirm the signal."""
        interject("\nstopping after this iteration; press Ctrl-C again to exit at once\n")

    def _say(self, text: str) -> None:
        message(text)

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
    """A live bar with the newest metrics below it. Other lines are printed above the bar."""

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
        """Set the length of the bar."""
        super().started(engine)
        self._progress.update(self._task, total=self._total, completed=self._first)

    def evaluating(self, role: str, prompt_set: str) -> None:
        """Show it in place of the metrics."""
        self._details.plain = printable(f"evaluating on {prompt_set} …")

    def waiting(self, text: str) -> None:
        """Show it in place of the metrics."""
        self._details.plain = printable(text)

    def saved(self, checkpoint: Path) -> None:
        """Show the newest checkpoint."""
        self._checkpoint = checkpoint.name

    def _say(self, text: str) -> None:
        self._live.console.print(Text(printable(text)))

    def _show(self, report: IterationReport) -> None:
        left = f"{_duration(self._seconds_left(report.step))} left"
        self._progress.update(self._task, completed=report.step, left=left)
        self._details.plain = (
            f"{self._numbers(report)}  last checkpoint {self._checkpoint}\n{sparkline(list(self._rewards))}"
        )


class Stages:
    """Progress of several stages: bars with rate and time left on a terminal, lines elsewhere.

    Call it with the name of the stage, the number of steps done and the total.
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
        """Update the progress of a stage."""
        began = self._began.setdefault(stage, time.monotonic())
        pace = _pace(done, total, time.monotonic() - began)
        if self._console.is_terminal:
            if stage not in self._tasks:
                self._tasks[stage] = self._progress.add_task(printable(stage), pace="")
            self._progress.update(self._tasks[stage], completed=done, total=total, pace=pace)
        elif done == 0 or done * LINES_PER_STAGE // total > (done - 1) * LINES_PER_STAGE // total:
            message(f"{stage}: {done}/{total}  {pace}".rstrip())


def build_observer(folder: Path, *, quiet: bool) -> Quiet:
    """The observer for this stderr: nothing with `quiet`, a bar on a terminal, else lines."""
    console = Console(stderr=True)
    if quiet:
        return Quiet()
    return Bar(folder, console) if console.is_terminal else Lines(folder)


def trend(values: list[float]) -> str:
    """An arrow and the change over the last TREND values, or over fewer; empty for a single value."""
    if len(values) < 2:
        return ""
    back = min(TREND, len(values) - 1)
    change = values[-1] - values[-1 - back]
    arrow = "→" if abs(change) < 5e-4 else "↗" if change > 0 else "↘"
    return f"{arrow} {change:+.3f} in {back}"


def sparkline(values: list[float]) -> str:
    """The last values as a line of blocks, scaled from minimum to maximum."""
    shown = values[-SPARKLINE:]
    if not shown:
        return ""
    low, span = min(shown), max(shown) - min(shown)
    return "".join(SPARKS[int((value - low) / span * (len(SPARKS) - 1)) if span else 0] for value in shown)


def _pace(done: int, total: int, seconds: float) -> str:
    """Rate and time left; empty before the first step."""
    if not done or not seconds:
        return ""
    return f"{done / seconds:.3g}/s  {_duration(seconds / done * (total - done))} left"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
