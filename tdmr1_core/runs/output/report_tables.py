"""The facts and tables of a report, as plain data: dates, cost, evaluations, guard, continuations, environment."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tdmr1_core.preflight.rewards import trained_directions
from tdmr1_core.runs.checkpoints.run_config import CONFIG
from tdmr1_core.runs.evaluation.evaluate import Measure
from tdmr1_core.runs.metrics_log import METRICS
from tdmr1_core.runs.output.export import EXPORT
from tdmr1_core.runs.output.report import Evaluated, Report
from tdmr1_core.runs.output.report_charts import INTERVAL
from tdmr1_core.runs.output.resources import Usage

Table = dict[str, Any]
"""The arguments of `_table` by name: columns, rows of texts, caption, and the numbers of marked rows."""
DIFFERS = "≠ "
"""The sign before what differs between runs."""
MINUTES = {"day": 1440, "h": 60, "min": 1}


def what_is_trained(report: Report) -> str:
    """The rewards of a run, or `distillation`."""
    return " + ".join(reward.name for reward in report.config.rewards) or "distillation"


def facts(report: Report, preset: str) -> list[list[str]]:
    """Name and value of what identifies a run: model, rewards, progress, dates, duration, machine."""
    config = report.config
    began, ended = dates(report)
    found = [
        ["Model", config.model.name],
        ["Rewards", what_is_trained(report)],
        ["Closest preset", preset],
        ["Iterations", f"{report.iterations} of {config.iterations}"],
        ["Images", f"{config.batch.groups} groups of {config.batch.group_size} in an iteration"],
        ["Started", date(began)],
        ["Last change", date(ended)],
        ["Duration", duration(seconds_of(report))],
        ["Machine", _machine_text(report)],
        ["Folder", str(report.folder)],
    ]
    return [[name, value] for name, value in found if value]


def _machine_text(report: Report) -> str:
    """The machine of the last session in one line; empty if it is unknown."""
    last = machines(report)[-1] if machines(report) else {}
    return ", ".join(value if name == "device" else f"{name}: {value}" for name, value in last.items())


def machines(report: Report) -> list[dict[str, str]]:
    """The machine of each session that the run recorded."""
    return [usage.machine for usage in report.usage if usage.machine]


def dates(report: Report) -> tuple[float | None, float | None]:
    """When the run began and was last changed, in Unix seconds. Earlier versions recorded only the times of files."""
    times = [usage.time for usage in report.usage]
    files = [path.stat().st_mtime for name in (CONFIG, METRICS) if (path := report.folder / name).is_file()]
    every = times or files
    return (min(every), max(every)) if every else (None, None)


def seconds_of(report: Report) -> float:
    """The time that the run took without pauses: from the log of resources, otherwise the sum of its iterations."""
    if report.usage:
        return sum(_work(before, after) for before, after in zip(report.usage, report.usage[1:], strict=False))
    return sum(value for row in report.metrics if math.isfinite(value := row.get("time/iteration", 0.0)) and value > 0)


def _work(before: Usage, after: Usage) -> float:
    """The seconds between two lines of one session. A new session describes its machine."""
    return 0.0 if after.machine else max(0.0, after.time - before.time)


def date(seconds: float | None) -> str:
    """A time as `2026-11-28 09:30 UTC`; empty for None or a time that no calendar has."""
    try:
        return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
    except (OverflowError, ValueError, OSError):
        return ""


def duration(seconds: float) -> str:
    """A time span with its two largest units, such as `2 h 5 min`; `12.3 s` below a minute; empty for none."""
    if not 0 < seconds < math.inf:
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s"
    parts, rest = [], round(seconds / 60)
    for unit, size in MINUTES.items():
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])


def links(report: Report) -> list[dict[str, Any]]:
    """What lies in the run folder beside its log: each with a text, its path and, where one opens it, a command."""
    found: list[dict[str, Any]] = []
    if (report.folder / EXPORT).is_dir():
        found.append({"text": "Exported LoRA", "path": report.folder / EXPORT})
    if (report.folder / "tensorboard").is_dir():
        board = report.folder / "tensorboard"
        found.append({"text": "TensorBoard", "path": board, "command": f"tensorboard --logdir {board}"})
    return found


def interval(value: Measure) -> str:
    """A mean with its 95 % interval, such as `0.512 ± 0.031`."""
    if not math.isfinite(value.stderr):
        return f"{value.mean:.3f}"
    return f"{value.mean:.3f} ± {INTERVAL * value.stderr:.3f}"


def evaluations_table(reports: Sequence[Report], names: Sequence[str]) -> Table | None:
    """First, last and best evaluation of every reward on every prompt set."""
    rows = [
        [*([name] if len(reports) > 1 else []), *_evaluation_row(each, trained_directions(report.config))]
        for report, name in zip(reports, names, strict=True)
        for each in report.evaluations
    ]
    columns = ["prompts", "reward", "first", "last", "best", "after iterations", "images"]
    caption = "Mean and 95 % interval. The best mean of several evaluations is optimistic."
    return _table([*(["run"] if len(reports) > 1 else []), *columns], rows, caption)


def _evaluation_row(each: Evaluated, directions: Mapping[str, int]) -> list[str]:
    """The cells of a reward. The best value of a reward that training reduces is the lowest one."""
    (first, before), (last, after) = each.points[0], each.points[-1]
    step, best = max(each.points, key=lambda point: directions.get(each.reward, 1) * point[1].mean)
    later = last > first
    return [
        each.prompts,
        each.reward,
        interval(before),
        interval(after) if later else "–",
        f"{best.mean:.3f} ({step})",
        f"{first} and {last}" if later else str(first),
        str(after.n),
    ]


def guard_tables(report: Report) -> list[Table]:
    """The alarms of the guard, and the drift of each measure between its first and its last reading."""
    alarms = [[str(step), alarm] for step, alarm in report.alarms]
    drifts = [
        [
            drift.name,
            f"{drift.before.mean:.4g} ± {drift.before.stderr:.2g}",
            f"{drift.after.mean:.4g} ± {drift.after.stderr:.2g}",
            f"{drift.size:+.2f}",
            "too far" if too_far else "",
        ]
        for drift, too_far in report.drifts
    ]
    caption = (
        f"{len(report.readings)} readings, {len(report.alarms)} alarms. A drift of more than "
        f"{report.config.guard.threshold:g} deviations is too far. The unit is the standard deviation of single images "
        "in the first reading. Means with standard errors."
    )
    columns = ["measure", "first reading", "last reading", "drift, deviations", "verdict"]
    marked = [row for row, cells in enumerate(drifts) if cells[-1]]
    tables = [
        _table(["iteration", "alarm"], alarms, "Alarms"),
        _table(columns, drifts, caption, marked=marked),
    ]
    return [table for table in tables if table is not None]


def skipped_table(report: Report) -> Table | None:
    """Counts of skipped updates and of images without a score."""
    return _table(["skipped", "count"], [[what, str(count)] for what, count in report.skipped.items()])


def continuations_table(report: Report) -> Table | None:
    """The later sessions of a run: the checkpoint that each began at, and what had changed."""
    rows = []
    for resume in report.resumes:
        changed = [f"{name}: {old} → {new}" for name, (old, new) in resume["changes"].items()]
        rows.append([resume["checkpoint"], "; ".join([*changed, *resume["differences"]]) or "none"])
    return _table(["continued from", "changes"], rows)


def environment_table(reports: Sequence[Report], names: Sequence[str]) -> Table | None:
    """The machines and package versions of the runs, one column for each. Rows that differ are marked."""
    sessions = [machines(report) for report in reports]
    machine = [each[-1] if each else {} for each in sessions]
    found = [{**here, **report.versions} for here, report in zip(machine, reports, strict=True)]
    keys = list(dict.fromkeys(key for each in found for key in each))
    rows = [[key, *(each.get(key, "–") for each in found)] for key in keys]
    marked = [row for row, cells in enumerate(rows) if len(set(cells[1:])) > 1]
    return _table(["package or part", *names], rows, marked=marked, sign=DIFFERS)


def _table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    caption: str = "",
    *,
    marked: Sequence[int] = (),
    sign: str = "",
) -> Table | None:
    """A table as data; None without rows. `sign` stands before the first cell of the rows `marked`."""
    if not rows:
        return None
    cells = [list(row) for row in rows]
    return {"columns": list(columns), "rows": cells, "caption": caption, "marked": list(marked), "sign": sign}


def relative_link(path: Path, page: Path) -> str:
    """The URL of a file or folder, relative to the folder of the page where possible."""
    try:
        return quote(Path(os.path.relpath(path.resolve(), page.resolve().parent)).as_posix())
    except ValueError:  # another drive
        return path.resolve().as_uri()
