"""`tdmr1 report`: an HTML report of a run, and a summary."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tdmr1_cli.options import JsonOption
from tdmr1_cli.output import data, emit_json, measure_document, message, plus_minus, table, warning
from tdmr1_cli.targets import RunArgument, check_run
from tdmr1_core.durable_files import check_writable

if TYPE_CHECKING:
    from tdmr1_core.runs.output.report import Report


def command(
    run: RunArgument,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="The HTML file (default: RUN/report.html).")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Write an HTML report of a run, finished or not: curves, evaluations, guard, skipped updates, settings.

    A summary is printed. With --json the report is printed as JSON and no file is written.
    """
    check_run(run)
    file = output or run / "report.html"
    if not json:
        check_writable(file.parent)
    from tdmr1_core.runs.output.report import read_report

    report = read_report(run)
    if json:
        emit_json(_document(report))
        return
    from tdmr1_core.durable_files import write_results
    from tdmr1_core.runs.output.report_page import report_page

    _show(report)
    write_results({file: report_page(report).encode()})
    data(str(file))


def _show(report: Report) -> None:
    config = report.config
    what = "+".join(reward.name for reward in config.rewards) or "distillation"
    message(f"{config.model.name}, {what}: {report.iterations} of {config.iterations} iterations")
    for step, alarm in report.alarms:
        warning(f"guard alarm in iteration {step}: {alarm}")
    if report.readings and not report.alarms:
        message(f"guard: no alarm in {len(report.readings)} readings")
    for what, count in report.skipped.items():
        message(f"{what}: {count}")
    if report.resumes:
        message(f"continued {len(report.resumes)} times, the last time from {report.resumes[-1]['checkpoint']}")
    rows = []
    for each in report.evaluations:
        (first, before), (last, after) = each.points[0], each.points[-1]
        now = plus_minus(after) if last > first else "–"
        rows.append([each.prompts, each.reward, plus_minus(before), now, f"{first} and {last}", str(after.n)])
    if rows:
        columns = ["prompts", "reward", "first", "last", "at iterations", "images"]
        table(columns, rows, title="mean ± standard error")


def _document(report: Report) -> dict[str, Any]:
    return {
        "folder": str(report.folder),
        "iterations": report.iterations,
        "of": report.config.iterations,
        "settings": report.settings,
        "curves": report.curves,
        "evaluations": [
            {
                "prompts": each.prompts,
                "reward": each.reward,
                "points": [{"step": step, **measure_document(value)} for step, value in each.points],
            }
            for each in report.evaluations
        ],
        "alarms": [{"step": step, "alarm": alarm} for step, alarm in report.alarms],
        "guard": [
            {"name": drift.name, "size": drift.size if isfinite(drift.size) else None, "too_far": too_far}
            for drift, too_far in report.drifts
        ],
        "left_out": report.skipped,
        "resumes": report.resumes,
    }
