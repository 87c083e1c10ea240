"""Progress on stderr: a live view on a terminal and in a notebook, lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from tdmr1_cli.live_view import Readings, duration, numbers, view
from tdmr1_cli.output import message, plus_minus
from tdmr1_cli.streams import interject
from tdmr1_core.runs.observer import Observer
from tdmr1_rewards.errors import printable

if TYPE_CHECKING:
    from tdmr1_core.engine import Engine
    from tdmr1_core.records import IterationReport
    from tdmr1_core.runs.evaluation.evaluate import Evaluation

BAR = 24
"""Columns of the bar: with a million iterations and days left, its line has 80."""
EVERY_LINE = 10
"""Iterations at the start of a session that each get a line, without a terminal."""
LINE_INTERVAL = 10.0
"""Seconds between two lines about later iterations, without a terminal."""
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
        self._readings = Readings()
        self._reported: set[str] = set()
        self._total = self._first = 0
        self._printed = -math.inf
        """When the last line about an iteration was printed."""
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
        self._readings.metrics = report.metrics
        if "reward/mean" in report.metrics:
            self._readings.rewards.append(report.metrics["reward/mean"])
        self._show(report.step)

    def evaluating(self, role: str, prompt_set: str) -> None:
        """Print the prompt set."""
        self._say(f"evaluating on {prompt_set} …")

    def evaluated(self, step: int, evaluation: Evaluation) -> None:
        """Print the rewards. The time left is computed from the end of the first evaluation."""
        if step == self._first:
            self._began = time.monotonic()
        means = {reward: value.mean for reward, value in evaluation.measures.items()}
        self._readings.add_evaluation(evaluation.prompt_set, means)
        for reward, value in evaluation.measures.items():
            self._say(f"{evaluation.prompt_set} at iteration {step}: {reward} {plus_minus(value)} (n = {value.n})")

    def saved(self, checkpoint: Path) -> None:
        """Print the path."""
        self._say(f"saved {checkpoint}")

    def alarmed(self, step: int, alarm: str) -> None:
        """Keep the alarm. It is printed as a warning."""
        self._readings.alarm = f"iteration {step}: {alarm}"

    def tracked(self, address: str) -> None:
        """Print the address."""
        self._say(f"tracked by {address}")

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

    def _show(self, step: int) -> None:
        now = time.monotonic()
        if step - self._first <= EVERY_LINE or step == self._total or now - self._printed >= LINE_INTERVAL:
            self._printed = now
            self._say("  ".join([f"iteration {step}/{self._total}", *numbers(self._readings), self._left(step)]))

    def _left(self, step: int) -> str:
        return f"{duration(self._seconds_left(step))} left"

    def _seconds_left(self, step: int) -> float:
        return (time.monotonic() - self._began) / max(step - self._first, 1) * (self._total - step)


class Bar(Lines):
    """A bar with the live view below it. Other lines are printed above the bar."""

    def __init__(self, folder: Path, console: Console) -> None:
        super().__init__(folder)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(BAR),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self._task = self._progress.add_task("iteration", total=None, left="")
        self._live = Live(self._progress, console=console, refresh_per_second=4)

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
        """Show it below the metrics."""
        self._refresh(f"evaluating on {prompt_set} …")

    def evaluated(self, step: int, evaluation: Evaluation) -> None:
        """Print the rewards above the bar, and show them below it."""
        super().evaluated(step, evaluation)
        self._refresh()

    def waiting(self, text: str) -> None:
        """Show it below the metrics."""
        self._refresh(text)

    def saved(self, checkpoint: Path) -> None:
        """Show the newest checkpoint."""
        self._readings.checkpoint = checkpoint.name

    def _say(self, text: str) -> None:
        self._live.console.print(Text(printable(text)))

    def _show(self, step: int) -> None:
        self._progress.update(self._task, completed=step, left=self._left(step))
        self._refresh()

    def _refresh(self, busy: str = "") -> None:
        now = Text(printable(busy), no_wrap=True, overflow="ellipsis")
        self._live.update(Group(self._progress, view(self._readings), now))


class Notebook(Lines):
    """The live view in the output of a notebook's cell, which is updated. It needs no ipywidgets."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._handle: Any = None

    def saved(self, checkpoint: Path) -> None:
        """Show the newest checkpoint."""
        self._readings.checkpoint = checkpoint.name

    def _show(self, step: int) -> None:
        from IPython.display import display

        text = Text(f"iteration {step}/{self._total}  {self._left(step)}\n").append_text(view(self._readings))
        if self._handle is None:
            self._handle = display(text, display_id=True)
        else:
            self._handle.update(text)


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
    """The observer for this stderr: nothing with `quiet`, a live view on a terminal or in a notebook, else lines."""
    if quiet:
        return Quiet()
    if is_notebook():
        return Notebook(folder)
    console = Console(stderr=True)
    return Bar(folder, console) if console.is_terminal and not console.is_dumb_terminal else Lines(folder)


def is_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    shell = sys.modules.get("IPython") and sys.modules["IPython"].get_ipython()
    return type(shell).__name__ == "ZMQInteractiveShell" or "google.colab" in type(shell).__module__


def _pace(done: int, total: int, seconds: float) -> str:
    """Rate and time left; empty before the first step."""
    if not done or not seconds:
        return ""
    return f"{done / seconds:.3g}/s  {duration(seconds / done * (total - done))} left"
