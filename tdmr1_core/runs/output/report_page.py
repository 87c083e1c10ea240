"""Writes a report as one HTML file. It needs no other file: curves are inline SVG, and images are embedded."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Mapping, Sequence

from tdmr1_core.runs.evaluation.evaluate import Measure
from tdmr1_core.runs.output.previews import BEFORE_AFTER
from tdmr1_core.runs.output.report import Report
from tdmr1_rewards.errors import printable

Point = tuple[float, float, float]
"""Iteration, value and standard error."""

WIDTH, HEIGHT, MARGIN = 720, 240, 56
COLOURS = ("#1b6ca8", "#c1440e", "#2e7d32", "#7b3fa0", "#8a6d00", "#00838f")
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1c1c1c }
table { border-collapse: collapse; margin: .5rem 0 } td, th { padding: .15rem .8rem .15rem 0; text-align: left }
th { border-bottom: 1px solid #999 } td.n { text-align: right; font-variant-numeric: tabular-nums }
svg { width: 100%; height: auto } .alarm { background: #fdecea; border-left: 4px solid #c1440e; padding: .5rem 1rem }
img { max-width: 100%; image-rendering: pixelated } code { font-size: .9em }
"""


def report_page(report: Report) -> str:
    """The report as HTML."""
    config = report.config
    what = " + ".join(reward.name for reward in config.rewards) or "distillation"
    title = f"{config.model.name}, {what}"
    held_out = {f"{each.reward} on {each.prompts}": _points(each.points) for each in report.evaluations}
    training = {name: [(step, value, 0.0) for step, value in points] for name, points in report.curves.items()}
    parts = [
        f"<h1>{_as_html(title)}</h1>",
        f"<p>{report.iterations} of {config.iterations} iterations, in <code>{_as_html(str(report.folder))}</code></p>",
        *(f'<p class="alarm">Guard, iteration {step}: {_as_html(alarm)}</p>' for step, alarm in report.alarms),
        _section("Training", _chart(training, "training, by iteration")),
        _section("Evaluations (mean ± standard error)", _chart(held_out, "evaluations, by iteration")),
        _rows(
            ["prompts", "reward", "first", "last", "at iterations", "n"],
            [_first_and_last(each.prompts, each.reward, each.points) for each in report.evaluations],
        ),
        _section("Guard", _guard(report)),
        _section("Skipped", _skipped(report)),
        _section("Resumes", _resumes(report)),
        _before_after(report),
        _section("Settings", _rows(["setting", "value"], [[k, str(v)] for k, v in report.settings.items()])),
        _section("Versions", _rows(["package", "version"], [list(pair) for pair in report.versions.items()])),
    ]
    head = f'<meta charset="utf-8"><title>{_as_html(title)}</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(parts) + "\n</body></html>\n"


def _section(title: str, content: str) -> str:
    return f"<h2>{_as_html(title)}</h2>\n{content or '<p>None.</p>'}"


def _rows(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    head = "".join(f"<th>{_as_html(column)}</th>" for column in columns)
    lines = ["".join(f"<td>{_as_html(cell)}</td>" for cell in row) for row in rows]
    return f"<table><tr>{head}</tr>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _points(points: Sequence[tuple[int, Measure]]) -> list[Point]:
    return [(step, value.mean, value.stderr if math.isfinite(value.stderr) else 0.0) for step, value in points]


def _first_and_last(prompts: str, reward: str, points: Sequence[tuple[int, Measure]]) -> list[str]:
    (first, before), (last, after) = points[0], points[-1]
    shown = [f"{value.mean:.3f} ± {value.stderr:.3f}".replace("nan", "–") for value in (before, after)]
    return [prompts, reward, shown[0], shown[1] if last > first else "–", f"{first} and {last}", str(after.n)]


def _guard(report: Report) -> str:
    if not report.readings:
        return ""
    rows = [
        [
            drift.name,
            f"{drift.before.mean:.4g} ± {drift.before.stderr:.2g}",
            f"{drift.after.mean:.4g} ± {drift.after.stderr:.2g}",
            f"{drift.size:+.2f}",
            "too far" if too_far else "",
        ]
        for drift, too_far in report.drifts
    ]
    summary = f"<p>{len(report.readings)} readings, {len(report.alarms)} alarms. A drift of more than "
    summary += f"{report.config.guard.threshold:g} deviations is too far. The unit is the standard deviation of single "
    summary += "images in the first reading.</p>"
    columns = ["measure", "first reading", "last reading", "drift, deviations", ""]
    return summary + _rows(columns, rows)


def _skipped(report: Report) -> str:
    return _rows(["what", "how many"], [[what, str(count)] for what, count in report.skipped.items()])


def _resumes(report: Report) -> str:
    rows = []
    for resume in report.resumes:
        changed = [f"{name}: {old} → {new}" for name, (old, new) in resume["changes"].items()]
        rows.append([resume["checkpoint"], "; ".join([*changed, *resume["differences"]]) or "none"])
    return _rows(["from checkpoint", "changes"], rows)


def _before_after(report: Report) -> str:
    path = report.folder / BEFORE_AFTER
    if not path.is_file():
        return ""
    data = base64.b64encode(path.read_bytes()).decode()
    return _section("Before and after", f'<img alt="the same prompts and noises" src="data:image/png;base64,{data}">')


def _chart(series: Mapping[str, Sequence[Point]], title: str) -> str:
    """A line chart over iterations with bars of one standard error. Values that are not finite are skipped."""
    kept = {name: [point for point in points if math.isfinite(point[1])] for name, points in series.items()}
    kept = {name: points for name, points in kept.items() if points}
    if not kept:
        return ""
    steps = [step for points in kept.values() for step, _, _ in points]
    values = [end for points in kept.values() for _, value, error in points for end in (value - error, value + error)]
    low, high, last = min(values), max(values), max(max(steps), 1)
    span = (high - low) or 1.0

    def place(step: float, value: float) -> str:
        x = MARGIN + step / last * (WIDTH - 2 * MARGIN)
        return f"{x:.1f},{HEIGHT - MARGIN / 2 - (value - low) / span * (HEIGHT - MARGIN):.1f}"

    legend = []
    drawn = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>{_as_html(title)}</title>']
    for end in (low, high):
        x, y = place(0, end).split(",")
        drawn.append(f'<line x1="{x}" y1="{y}" x2="{WIDTH - MARGIN}" y2="{y}" stroke="#ccc"/>')
        drawn.append(f'<text x="{MARGIN - 6}" y="{y}" font-size="11" text-anchor="end">{end:.3g}</text>')
    drawn.append(f'<text x="{WIDTH - MARGIN}" y="{HEIGHT - 8}" font-size="11" text-anchor="end">{last}</text>')
    for number, (name, points) in enumerate(kept.items()):
        colour = COLOURS[number % len(COLOURS)]
        line = " ".join(place(step, value) for step, value, _ in points)
        drawn.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        for step, value, error in points if any(error for *_, error in points) else ():
            ends = " ".join(place(step, value + sign * error) for sign in (-1, 1))
            drawn.append(f'<polyline points="{ends}" stroke="{colour}" stroke-width="1"/>')
        legend.append(f'<span style="color: {colour}">{_as_html(name)}</span>')
    return f"<p>{', '.join(legend)}</p>" + "".join(drawn) + "</svg>"


def _as_html(text: str) -> str:
    """A text from outside as HTML, without control characters."""
    return html.escape(printable(text, lines=True))
