"""What users see of a run: on terminals of 80 and 120 columns, in a pipe, without colors, and in a notebook."""

from __future__ import annotations

import io
import math
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from rich.console import Console

from tdmr1_cli.live_view import Readings, memory_in_use, sparkline, trend, view
from tdmr1_cli.progress import LINE_INTERVAL, Bar, Lines, Notebook, Quiet, build_observer

pytestmark = pytest.mark.unit
METRICS = {"reward/mean": 0.5, "zero_std_ratio": 0.25, "images_per_second": 3.0}
ALARM = "reward/aesthetic of held-out images is 1.5 standard deviations below that of the first evaluation"
COLOR = re.compile(r"\x1b\[[\d;]*(3|4|9)\d[\d;]*m")


def a_run(iterations: int = 4, done: int = 1) -> SimpleNamespace:
    config = SimpleNamespace(
        iterations=iterations, batch=SimpleNamespace(groups=2, group_size=3), rewards=[SimpleNamespace(name="r")]
    )
    return SimpleNamespace(config=config, iteration_index=done, entry=SimpleNamespace(name="m"), model_files=None)


def report(step: int, reward: float = 0.5, skipped: tuple[str, ...] = ()) -> SimpleNamespace:
    return SimpleNamespace(step=step, metrics=METRICS | {"reward/mean": reward}, skipped=skipped)


def evaluation(mean: float, prompt_set: str = "held") -> SimpleNamespace:
    return SimpleNamespace(prompt_set=prompt_set, measures={"other": SimpleNamespace(mean=mean, stderr=0.01, n=4)})


def shown_by(console: Console, iterations: int = 4) -> str:
    """The screen after a run with two evaluations and an alarm, since the bar was drawn for the last time."""
    screen = console.file
    assert isinstance(screen, io.StringIO)
    with Bar(Path("run"), console) as bar:
        bar.started(a_run(iterations))
        bar.evaluated(1, evaluation(0.25))
        bar.iteration(report(2, skipped=("surrogate: no difference",)))
        bar.saved(Path("checkpoints/step-000002"))
        bar.alarmed(2, ALARM)
        bar.evaluated(2, evaluation(0.5))
        bar.iteration(report(3, 0.75))
    assert "resuming after iteration 1: m, r, " in screen.getvalue()
    assert screen.getvalue().count("surrogate: no difference") == 1
    bars = [found.start() for found in re.finditer(r"iteration (\x1b\[[\d;]*m)?[━╸╺ ]", screen.getvalue())]
    return screen.getvalue()[bars[-1] :]


@pytest.mark.parametrize("width", [80, 120])
def test_the_live_view_fits_the_terminal(width):
    iterations = 10**6 if width == 80 else 4
    shown = shown_by(Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None), iterations)
    bar, reward, held_out, now, alarm, *_ = re.sub(r"\x1b\[\S*?[a-zA-Z]", "", shown).splitlines()
    assert re.fullmatch(rf"iteration [━╸ ]+3/{iterations} \d:\d\d:\d\d (\d+:)?\d+:\d\d left *", bar)
    assert reward.split() == ["reward", "0.750", "↗", "+0.250", "in", "1", "▁█"]
    assert held_out.split() == ["held-out", "0.500", "↗", "+0.250", "in", "1", "▁█", "other", "on", "held"]
    assert re.fullmatch(r"now +no signal 25%  3\.0 images/s  memory \d+\.\d GB  checkpoint step-000002", now)
    assert alarm.startswith("alarm     iteration 2: reward/aesthetic")
    assert alarm.rstrip().endswith("…" if width == 80 else "evaluation")
    assert all(len(line) <= width for line in (bar, reward, held_out, now, alarm))


def test_a_color_marks_an_alarm_unless_the_user_wants_none(monkeypatch):
    def colors() -> bool:
        return bool(COLOR.search(shown_by(Console(file=io.StringIO(), force_terminal=True, width=80))))

    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    assert colors()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not colors()


def test_a_pipe_gets_a_line_for_the_first_iterations_and_then_at_intervals(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("tdmr1_cli.progress.time.monotonic", lambda: now[0])
    observer = Lines(Path("run"))
    observer.started(a_run(iterations=100, done=0))
    for step in range(1, 101):
        now[0] += LINE_INTERVAL / 20
        observer.iteration(report(step))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("iteration ")]
    assert [int(line.split()[1].split("/")[0]) for line in lines] == [*range(1, 11), 30, 50, 70, 90, 100]
    first = r"iteration 1/100  reward 0\.500  no signal 25%  3\.0 images/s  memory \d+\.\d GB  0:50 left"
    assert re.fullmatch(first, lines[0])
    assert "\x1b" not in "".join(lines)


def test_lines_report_a_skipped_update_once(capsys):
    observer = Lines(Path("run"))
    observer.started(a_run())
    for step in (2, 3):
        observer.iteration(report(step, skipped=("surrogate: no difference",)))
    out, err = capsys.readouterr()
    assert out == ""
    assert "resuming after iteration 1" in err
    assert err.count("surrogate: no difference") == 1
    assert "iteration 3/4  reward 0.500 → +0.000 in 1  no signal 25%  3.0 images/s" in err


def test_a_distillation_shows_its_loss_and_no_reward():
    readings = Readings(metrics={"loss/generator": 0.125, "images_per_second": 2.0})
    lines = view(readings).plain.splitlines()
    assert re.fullmatch(r"now +generator loss 0\.1250  2\.0 images/s  memory \S+ GB  checkpoint none yet", lines[0])
    assert lines[1].split() == ["alarm", "none"]


def test_a_notebook_updates_one_output(monkeypatch, capsys):
    updates: list[str] = []
    handle = SimpleNamespace(update=lambda text: updates.append(text.plain))
    ipython = ModuleType("IPython")
    shell = type("ZMQInteractiveShell", (), {})()
    ipython.get_ipython = lambda: shell

    def display(text, *, display_id):
        updates.append(text.plain)
        assert "text/html" in text._repr_mimebundle_([], [])
        return handle

    ipython.display = ModuleType("IPython.display")
    ipython.display.display = display
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", ipython.display)
    observer = build_observer(Path("run"), quiet=False)
    assert type(observer) is Notebook
    observer.started(a_run())
    observer.iteration(report(2))
    observer.saved(Path("step-000002"))
    observer.iteration(report(3, 0.75))
    assert [text.splitlines()[0].split("  ")[0] for text in updates] == ["iteration 2/4", "iteration 3/4"]
    assert "checkpoint step-000002" in updates[1]
    assert "resuming after iteration 1" in capsys.readouterr().err


def test_a_pipe_gets_lines_and_quiet_nothing(monkeypatch):
    assert type(build_observer(Path("run"), quiet=False)) is Lines
    assert type(build_observer(Path("run"), quiet=True)) is Quiet


@pytest.mark.parametrize(("name", "kind"), [("xterm", Bar), ("dumb", Lines)])
def test_a_terminal_gets_the_live_view_if_it_can_move_its_cursor(monkeypatch, name, kind):
    monkeypatch.setenv("TERM", name)
    monkeypatch.setenv("FORCE_COLOR", "1")  # stderr counts as a terminal
    assert type(build_observer(Path("run"), quiet=False)) is kind


def test_memory_is_that_of_the_gpu_if_it_is_used(monkeypatch):
    cuda = SimpleNamespace(
        is_initialized=lambda: True,
        current_device=lambda: 0,
        get_device_properties=lambda device: SimpleNamespace(total_memory=80e9),
        max_memory_allocated=lambda: 31.24e9,
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert memory_in_use() == "memory 31.2 of 80 GB (GPU)"


def test_trend_looks_ten_values_back():
    assert trend([1.0]) == ""
    assert trend([0.0, 0.5]) == "↗ +0.500 in 1"
    assert trend([5.0, *[1.0] * 10, 0.75]) == "↘ -0.250 in 10"
    assert trend([1.0, 1.0]) == "→ +0.000 in 1"


def test_sparkline_spans_its_values():
    assert sparkline([]) == ""
    assert sparkline([1.0, 1.0]) == "▁▁"
    assert sparkline([0.0, 1.0, 0.5]) == "▁█▄"
    assert sparkline([0.0, math.nan, 1.0]) == "▁ █"


def test_a_sparkline_of_many_values_has_means():
    assert sparkline([0.0, 2.0, 4.0, 6.0, 8.0, 10.0], columns=3) == "▁▄█"
    assert len(sparkline([float(value) for value in range(1000)])) == 24
