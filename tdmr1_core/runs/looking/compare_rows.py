"""A comparison as plain data: one JSON document, or a CSV table with a row per run, prompt set and reward."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from tdmr1_core.runs.looking.compare import ComparedRun, Comparison, Difference, Point, Standing, Subject
from tdmr1_core.runs.looking.intervals import CONFIDENCE
from tdmr1_rewards.texts.redaction import redact

DIFFERENCE = ("gain", "low", "high", "n", "paired")
COLUMNS = (
    "run",
    "folder",
    "prompts",
    "reward",
    *(f"{which}_{what}" for which in ("first", "final", "best") for what in ("iteration", "mean", "stderr", "n")),
    *(f"{which}_{what}" for which in ("own", "against") for what in DIFFERENCE),
    "iterations",
    "images",
    "seconds",
    "images_per_second",
    "hardware",
    "alarms",
)
"""The columns of the CSV table.

`own` is the gain over the first evaluation of the run, `against` that over the first run.
"""


def document(comparison: Comparison) -> dict[str, Any]:
    """The comparison as JSON data. NaN stands for what is not known."""
    runs = comparison.runs
    return {
        "baseline": runs[0].name,
        "confidence": CONFIDENCE,
        "runs": [_run(run) | {"of": run.report.config.iterations} for run in runs],
        "scores": [
            {"prompts": prompts, "reward": reward, **_standing_document(standing)}
            for (prompts, reward), standings in comparison.standings.items()
            for standing in standings
        ],
        "points": [
            {"run": run.name, "prompts": prompts, "reward": reward, "points": [_point(point) for point in points]}
            for run in runs
            for (prompts, reward), points in run.points.items()
        ],
        "unfair": comparison.warnings,
        "different_settings": [
            {"setting": each.name, **dict(zip([run.name for run in runs], each.values, strict=True))}
            for each in comparison.settings
        ],
    }


def csv_table(comparison: Comparison) -> str:
    """The comparison as CSV with COLUMNS. A run without evaluations has one row. Unknown values are empty."""
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in _rows(comparison):
        known = {name: value for name, value in row.items() if value is not None and value == value}
        writer.writerow({name: redact(value) if isinstance(value, str) else value for name, value in known.items()})
    return file.getvalue()


def _rows(comparison: Comparison) -> Iterator[dict[str, Any]]:
    for run in comparison.runs:
        found = [
            (subject, standing)
            for subject, standings in comparison.standings.items()
            for standing in standings
            if standing.run == run.name
        ]
        cost = {name if name != "name" else "run": value for name, value in _run(run).items()}
        yield from (cost | _csv_scores(subject, standing) for subject, standing in found) if found else [cost]


def _csv_scores(subject: Subject, standing: Standing) -> dict[str, Any]:
    row: dict[str, Any] = {"prompts": subject[0], "reward": subject[1]}
    for which, point in (("first", standing.first), ("final", standing.final), ("best", standing.best)):
        row |= {f"{which}_{name}": value for name, value in _point(point).items()}
    for which, difference in (("own", standing.own), ("against", standing.against)):
        known = _difference(difference) or {}
        row |= {f"{which}_{name}": known[name] for name in DIFFERENCE if name in known}
    return row


def _run(run: ComparedRun) -> dict[str, Any]:
    alarms = len(run.report.alarms)
    return {"name": run.name, "folder": str(run.report.folder), **asdict(run.cost), "alarms": alarms}


def _standing_document(standing: Standing) -> dict[str, Any]:
    return {
        "run": standing.run,
        "first": _point(standing.first),
        "final": _point(standing.final),
        "best": _point(standing.best),
        "own_gain": _difference(standing.own),
        "gain_over_baseline": _difference(standing.against),
    }


def _point(point: Point) -> dict[str, Any]:
    step, measure = point
    return {"iteration": step, "mean": measure.mean, "stderr": measure.stderr, "n": measure.n}


def _difference(difference: Difference | None) -> dict[str, Any] | None:
    if difference is None:
        return None
    gain = difference.gain
    row = {"gain": gain.gain, "low": gain.low, "high": gain.high, "n": gain.n, "paired": difference.unpaired is None}
    return row if difference.unpaired is None else {**row, "reason": difference.unpaired}
