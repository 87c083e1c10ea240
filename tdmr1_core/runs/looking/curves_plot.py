"""A figure of the evaluations of several runs, as PNG or SVG for papers. Needs matplotlib (the extra `plots`)."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.runs.looking.compare import ComparedRun, Comparison, Subject
from tdmr1_rewards.errors import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".png", ".svg")
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
"""Colors that color-blind readers can tell apart (Okabe and Ito)."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
PANEL = (3.4, 2.6)
"""Width and height of a panel in inches: one column of a paper."""
MOST_COLUMNS = 3
INSTALL = "pip install 'tdmr1[plots]'"

X_AXES: dict[str, Callable[[ComparedRun, int], float]] = {
    "iterations": lambda run, step: step,
    "images": lambda run, step: step * run.cost.images / max(1, run.cost.iterations),
    "minutes": lambda run, step: _seconds(run, step) / 60,
}
"""The horizontal axes: the place of an iteration of a run."""
TITLES = {"iterations": "iteration", "images": "training images", "minutes": "training time (min)"}


def check_plot(file: Path) -> None:
    """Raise Tdmr1Error if matplotlib is not installed, or if the suffix of the file is not in FORMATS."""
    if file.suffix.lower() not in FORMATS:
        raise Tdmr1Error(
            f"the plot {file} has the suffix {file.suffix!r}, but must be a {' or '.join(FORMATS)} file",
            f"name it {file.with_suffix('.svg')}",
            code="argument-invalid",
            values={"file": str(file), "formats": list(FORMATS)},
        )
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise Tdmr1Error(
            "a plot needs matplotlib, which is not installed",
            INSTALL,
            code="dependency-missing",
            values={"package": "matplotlib", "install": INSTALL},
        ) from error


def plot(comparison: Comparison, file_format: str, x_axis: str = "iterations") -> bytes:
    """The evaluations of each run as curves with bands of one standard error, one panel per prompt set and reward.

    `file_format` is one of FORMATS, `x_axis` one of X_AXES. The same comparison gives the same bytes. Raises Tdmr1Error
    if no run has an evaluation.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    subjects = list(comparison.standings)
    if not subjects:
        raise Tdmr1Error(
            "there is nothing to plot: no run has an evaluation",
            "wait for the first evaluation, or name other runs",
            code="file-unreadable",
            values={"runs": [str(run.report.folder) for run in comparison.runs]},
        )
    columns = min(len(subjects), MOST_COLUMNS)
    rows = math.ceil(len(subjects) / columns)
    style: Any = {
        "font.size": 8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "svg.hashsalt": "tdmr1",
        "svg.fonttype": "none",  # text stays text
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * rows + 0.4), layout="constrained")
        panels = list(figure.subplots(rows, columns, squeeze=False).flat)
        for panel, subject in zip(panels, subjects, strict=False):
            _draw(panel, comparison, subject, x_axis)
        for panel in panels[len(subjects) :]:
            panel.set_visible(False)
        handles = {label: handle for panel in figure.axes for handle, label in zip(*_legend(panel), strict=True)}
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(len(handles), 3))
        file = io.BytesIO()
        metadata: dict[str, Any] = {"Date": None} if file_format == ".svg" else {"Software": None}
        figure.savefig(file, format=file_format.removeprefix("."), dpi=300, metadata=metadata)
    return file.getvalue()


def _seconds(run: ComparedRun, step: int) -> float:
    """The training time up to an iteration."""
    return float(sum(row.get("time/iteration", 0.0) for row in run.report.metrics if row["step"] <= step))


def _draw(panel: Axes, comparison: Comparison, subject: Subject, x_axis: str) -> None:
    """The curves of one prompt set and reward."""
    prompts, reward = subject
    for number, run in enumerate(comparison.runs):
        points = run.points.get(subject, [])
        if not points:
            continue
        places = [X_AXES[x_axis](run, step) for step, _ in points]
        means = np.array([value.mean for _, value in points])
        errors = np.nan_to_num([value.stderr for _, value in points])
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        panel.plot(places, means, label=_label(run.name), color=colour, marker=marker, markersize=3, linewidth=1.2)
        panel.fill_between(places, means - errors, means + errors, color=colour, alpha=0.18, linewidth=0)
        if len(points) == 1:  # a band of no width
            panel.errorbar(places, means, yerr=errors, color=colour, capsize=2)
    panel.set_title(f"{_label(reward)} on {_label(prompts)}")
    panel.set_xlabel(TITLES[x_axis])
    panel.set_ylabel("mean ± standard error")
    panel.grid(alpha=0.25)


def _legend(panel: Axes) -> tuple[list[Any], list[str]]:
    handles, labels = panel.get_legend_handles_labels()
    return list(handles), list(labels)


def _label(text: str) -> str:
    """A text from outside for matplotlib, which would read `$` as mathematics and hide labels that begin with `_`."""
    shown = printable(text).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown
