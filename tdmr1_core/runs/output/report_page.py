"""The page of a report: its data as one JSON document, and one HTML file that needs no other file and no network.

The page itself is in the folder `page`: a template, styles, scripts, and the chart library uPlot with its licence.
"""

from __future__ import annotations

import base64
import html
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tdmr1_core.prompts.sets import short_names
from tdmr1_core.runs.output import report_charts as charts
from tdmr1_core.runs.output import report_images as pictures
from tdmr1_core.runs.output import report_tables as tables
from tdmr1_core.runs.output.report import Report
from tdmr1_core.runs.output.report_settings import settings_table
from tdmr1_rewards.errors import printable

PAGE = Path(__file__).with_name("page")
STYLES = ("uplot/uPlot.min.css", "page.css")
SCRIPTS = ("uplot/uPlot.iife.min.js", "charts.js", "images.js", "page.js")
"""In the order in which the page needs them."""
CONTENT_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
"""The file may load nothing, from nowhere."""

Tree = dict[str, Any]


def report_page(reports: Sequence[Report], output: Path) -> str:
    """The report of one or several runs as HTML. Links are relative to the file `output`."""
    data = page_data(reports, output)
    return _fill(
        policy=CONTENT_POLICY,
        title=html.escape(data["title"]),
        head="".join(f"<style>\n{(PAGE / name).read_text()}\n</style>\n" for name in STYLES),
        data=json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
        scripts="".join(f"<script>\n{(PAGE / name).read_text()}\n</script>\n" for name in SCRIPTS),
    )


def live_page(policy: str) -> str:
    """The page without data, and with its styles and scripts as other files: it asks a server for them."""
    return _fill(
        policy=policy,
        title="tdmr1 report",
        head="".join(f'<link rel="stylesheet" href="/{name}">\n' for name in STYLES),
        data="null",
        scripts="".join(f'<script src="/{name}"></script>\n' for name in SCRIPTS),
    )


def _fill(**parts: str) -> str:
    """The template with its parts. Each part is put in once, so that texts of a run cannot name another part."""
    pieces = (PAGE / "index.html").read_text().split("%%")
    return "".join(parts[piece] if number % 2 else piece for number, piece in enumerate(pieces))


def page_data(reports: Sequence[Report], output: Path | None = None) -> Tree:
    """Everything that the page shows, as JSON data without secrets. Without `output`, folders have no links."""
    folders = [str(report.folder.resolve()) for report in reports]
    short = short_names(folders)
    names = [short[folder] for folder in folders]
    images = pictures.Images()
    settings = settings_table(reports, names)
    of_runs = [charts.charts_of(report) for report in reports]
    data = {
        "title": _title(reports),
        "written": tables.date(time.time()),
        "runs": [
            _run(report, name, preset, output)
            for report, name, preset in zip(reports, names, settings["presets"], strict=True)
        ],
        "charts": charts.chart_data(of_runs, names),
        "images": _images(reports, names, images),
        "tables": {
            "evaluations": _known(tables.evaluations_table(reports, names)),
            "guard": _each(reports, names, tables.guard_tables),
            "skipped": _each(reports, names, lambda report: _known(tables.skipped_table(report))),
            "history": _each(reports, names, lambda report: _known(tables.continuations_table(report))),
            "settings": [settings],
            "environment": _known(tables.environment_table(reports, names)),
        },
    }
    cleaned: Tree = _clean(data)
    cleaned["files"] = [base64.b64encode(content).decode() for content in images.encoded]
    return cleaned


def _title(reports: Sequence[Report]) -> str:
    titles = [f"{report.config.model.name}, {tables.what_is_trained(report)}" for report in reports]
    return printable(" · ".join(dict.fromkeys(titles)))


def _known(table: tables.Table | None) -> list[tables.Table]:
    return [] if table is None else [table]


def _each(
    reports: Sequence[Report], names: Sequence[str], made: Callable[[Report], Sequence[tables.Table]]
) -> list[tables.Table]:
    """The tables of every run. With several runs, captions begin with the name of the run."""
    found = []
    for report, name in zip(reports, names, strict=True):
        for table in made(report):
            caption = " – ".join(filter(None, (name if len(reports) > 1 else "", table["caption"])))
            found.append({**table, "caption": caption})
    return found


def _run(report: Report, name: str, preset: str, output: Path | None) -> Tree:
    return {
        "name": name,
        "facts": tables.facts(report, preset),
        "links": [
            {
                "text": link["text"],
                "path": str(link["path"]),
                "href": output and tables.relative_link(link["path"], output),
                "command": link.get("command"),
            }
            for link in tables.links(report)
        ],
        "alarms": [{"step": step, "text": text} for step, text in report.alarms],
        "continuations": report.continuations,
        "finished": report.iterations >= report.config.iterations,
    }


def _images(reports: Sequence[Report], names: Sequence[str], images: pictures.Images) -> list[Tree]:
    """The images of each run that has some."""
    found = []
    for report, name in zip(reports, names, strict=True):
        frames, runs = pictures.frames_of(report.folder), len(reports)
        part = {
            "grids": pictures.grids_data(frames, images, runs),
            "pairs": pictures.pairs_data(report.folder, frames, images, runs),
            "groups": pictures.groups_data(report.folder, images, runs),
        }
        if any(part.values()):
            found.append({"run": name, **part})
    return found


def _clean(tree: Any) -> Any:
    """Plain data without secrets, control characters, and numbers that JSON cannot represent."""
    if isinstance(tree, str):
        return printable(tree, lines=True)
    if isinstance(tree, dict):
        return {printable(str(key)): _clean(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_clean(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def page_files() -> Iterator[tuple[str, bytes]]:
    """The name and content of each file that the live page asks for."""
    for name in (*STYLES, *SCRIPTS):
        yield name, (PAGE / name).read_bytes()
