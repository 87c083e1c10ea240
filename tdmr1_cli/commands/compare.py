"""`tdmr1 compare`: scores, gains and costs of several runs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tdmr1_cli.options import JsonOption
from tdmr1_cli.output import data, emit_json, message, number, plus_minus, table
from tdmr1_cli.targets import check_run
from tdmr1_core.durable_files import check_writable

if TYPE_CHECKING:
    from tdmr1_core.runs.looking.compare import Comparison, Cost, Difference, Point

LONGEST_VALUE = 40
"""Characters of a setting's value in the table."""


class PlotAxis(StrEnum):
    """The horizontal axis of the plot."""

    iterations = "iterations"
    images = "images"
    minutes = "minutes"


def command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders; the first is the baseline.")],
    csv: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Also write the table as CSV.")] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Also plot the evaluations, as a .png or .svg file."),
    ] = None,
    axis: Annotated[PlotAxis, typer.Option("--axis", help="The horizontal axis of the plot.")] = PlotAxis.iterations,
    json: JsonOption = False,
) -> None:
    """Compare runs, finished or not: final and best scores, gains with 95 % intervals, and costs.

    Gains are paired image by image where both runs evaluated the same prompts and seeds. Settings that make the
    comparison unfair are named.
    """
    for run in runs:
        check_run(run)
    for file in filter(None, (csv, plot)):
        check_writable(file.parent, "choose another file")
    from tdmr1_core.runs.looking.compare import compare

    if plot is not None:
        from tdmr1_core.runs.looking.curves_plot import check_plot

        check_plot(plot)
    comparison = compare(runs)
    _write(comparison, csv, plot, axis.value)
    if json:
        from tdmr1_core.runs.looking.compare_rows import document

        emit_json(document(comparison))
    else:
        _show(comparison)
    for file in filter(None, (csv, plot)):
        message(f"written: {file}")


def _write(comparison: Comparison, csv: Path | None, plot: Path | None, axis: str) -> None:
    """Write the files that were asked for, all or none."""
    from tdmr1_core.durable_files import write_results

    files: dict[Path, bytes] = {}
    if csv is not None:
        from tdmr1_core.runs.looking.compare_rows import csv_table

        files[csv] = csv_table(comparison).encode()
    if plot is not None:
        from tdmr1_core.runs.looking.curves_plot import plot as draw

        files[plot] = draw(comparison, plot.suffix.lower(), axis)
    if files:
        write_results(files)


def _show(comparison: Comparison) -> None:
    _show_costs(comparison)
    if not comparison.standings:
        data("no run has an evaluation")
    for (prompts, reward), standings in comparison.standings.items():
        rows = [
            [
                each.run,
                _point(each.first),
                _point(each.final) if each.final != each.first else "–",
                _point(each.best),
                _difference(each.own),
                _difference(each.against),
                str(each.final[1].n),
            ]
            for each in standings
        ]
        columns = ["run", "first", "final", "best", "gain since first", f"over {comparison.runs[0].name}", "images"]
        table(columns, rows, title=f"{reward} on {prompts}: mean ± standard error, gains with 95 % intervals")
    for text in _unpaired(comparison):
        data(f"not paired: {text}")
    if comparison.standings:
        data("Intervals are about the sampled images. They do not cover another training seed.", "")
    for text in comparison.warnings:
        data(f"not a fair comparison: {text}")
    if comparison.settings:
        names = [run.name for run in comparison.runs]
        rows = [[each.name, *map(_value, each.values)] for each in comparison.settings]
        table(["setting", *names], rows, title="settings that differ")


def _show_costs(comparison: Comparison) -> None:
    rows = []
    for run in comparison.runs:
        cost, report = run.cost, run.report
        iterations = f"{cost.iterations} of {report.config.iterations}"
        shown = [f"{cost.images:,}", _duration(cost), number(cost.images_per_second), str(len(report.alarms))]
        rows.append([run.name, iterations, *shown, cost.hardware or "not recorded"])
    columns = ["run", "iterations", "images", "time", "images/s", "alarms", "hardware"]
    table(columns, rows, title="cost of the training, without evaluations")


def _duration(cost: Cost) -> str:
    """Seconds, minutes or hours with one decimal."""
    for unit, seconds in (("h", 3600.0), ("min", 60.0)):
        if cost.seconds >= seconds:
            return f"{cost.seconds / seconds:.1f} {unit}"
    return f"{cost.seconds:.1f} s"


def _point(point: Point) -> str:
    return f"{plus_minus(point[1])} at {point[0]}"


def _difference(difference: Difference | None) -> str:
    if difference is None:
        return "–"
    gain = difference.gain
    how = f"{gain.n} pairs" if difference.unpaired is None else "not paired"
    return f"{gain.gain:+.3f} [{number(gain.low)}, {number(gain.high)}] ({how})"


def _unpaired(comparison: Comparison) -> list[str]:
    """Why gains are not paired, each reason once."""
    found = [
        f"{standing.run}: {each.unpaired}"
        for standings in comparison.standings.values()
        for standing in standings
        for each in (standing.own, standing.against)
        if each is not None and each.unpaired
    ]
    return list(dict.fromkeys(found))


def _value(value: object) -> str:
    from tdmr1_rewards.errors import shorten

    return "–" if value is None else shorten(str(value), LONGEST_VALUE)
