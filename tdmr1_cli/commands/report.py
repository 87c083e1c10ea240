"""`tdmr1 report`: an HTML report of one or several runs, and a summary; with --watch a page that follows them."""

from __future__ import annotations

from contextlib import closing, suppress
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tdmr1_cli.options import JsonOption
from tdmr1_cli.output import data, emit_json, measure_document, message, plus_minus, table, warning
from tdmr1_cli.targets import check_run
from tdmr1_core.durable_files import check_writable
from tdmr1_core.errors import Tdmr1Error

if TYPE_CHECKING:
    from tdmr1_core.runs.output.report import Report

FILE = "report.html"


def command(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folders; several are compared in one page.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", metavar="FILE", help="The HTML file (default: RUN/report.html; ./report.html for several runs)."
        ),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Serve the page on this machine and follow the runs until Ctrl-C.")
    ] = False,
    port: Annotated[
        int, typer.Option("--port", metavar="N", min=0, max=65535, help="Port of --watch; 0 is a free one.")
    ] = 0,
    json: JsonOption = False,
) -> None:
    """Write an HTML report of runs, finished or not: curves, evaluations, images, guard, cost, settings.

    The file needs no network. A summary is printed. With --json the report is printed as JSON and no file is written.
    """
    for run in runs:
        check_run(run)
    if watch:
        _watch(runs, output, port, json)
        return
    file = output or (runs[0] / FILE if len(runs) == 1 else Path(FILE))
    if not json:
        check_writable(file.parent)
    from tdmr1_core.runs.output.report import read_report

    reports = [read_report(run) for run in runs]
    if json:
        emit_json(_document(reports[0]) if len(reports) == 1 else {"runs": [_document(report) for report in reports]})
        return
    from tdmr1_core.durable_files import write_results
    from tdmr1_core.runs.output.report_page import report_page

    for report in reports:
        _show(report)
    write_results({file: report_page(reports, file).encode()})
    data(str(file))


def _watch(runs: list[Path], output: Path | None, port: int, json: bool) -> None:
    """Serve the live page until Ctrl-C."""
    if output is not None:
        raise Tdmr1Error(
            "--output and --watch exclude each other: the live page is no file",
            "remove one of the two",
            code="option-conflict",
            values={"options": ["--output", "--watch"]},
        )
    from tdmr1_core.runs.output.live_report import open_live_report
    from tdmr1_core.runs.output.report import read_report

    for run in runs:
        read_report(run)  # raises for a folder that the page could not show
    with closing(open_live_report(runs, port)) as page:
        if json:
            emit_json({"url": page.url})
        else:
            data(page.url)
            message("open this link in a browser on this machine; Ctrl-C stops")
        with suppress(KeyboardInterrupt):
            page.run()


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
