"""The curves of docs/troubleshooting.md as small SVG files, drawn from docs/curves/measured.json.

`benchmarks/troubleshooting_curves.py` makes the runs and writes that file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "curves"
WIDTH, HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 14, 12, 14, 56
"""The margins of the axes, in pixels."""
LEGEND_LINE = 15
LETTER = 6.3
"""The mean width of a letter of the legend, in pixels."""
COLORS = ("#1d4ed8", "#b45309", "#15803d")
"""Dark enough to be read on white."""

Points = Sequence[tuple[int, float]]
"""Iterations and values."""


def measured() -> dict[str, dict[str, Points]]:
    """The curves of each figure by their labels."""
    found: dict[str, dict[str, Points]] = json.loads((FOLDER / "measured.json").read_text(encoding="utf-8"))
    return found


def figure(curves: dict[str, Points]) -> str:
    """The SVG file of a figure. Each curve has an axis of its own, whose range is in the legend."""
    last = max(step for points in curves.values() for step, _ in points)
    bottom = HEIGHT - BOTTOM
    shown = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#ffffff" stroke="#9ca3af"/>',
        '<g font-family="sans-serif" font-size="12">',
        f'<path d="M{LEFT} {TOP} V{bottom} H{WIDTH - RIGHT}" fill="none" stroke="#4b5563"/>',
        f'<text x="{WIDTH - RIGHT}" y="{bottom + 13}" text-anchor="end" fill="#4b5563">iteration {last}</text>',
    ]
    x, y = float(LEFT), bottom + 28
    for (label, points), color in zip(curves.items(), COLORS, strict=False):
        low, high = axis([value for _, value in points])
        shown.append(f'<path d="{_path(points, last, low, high)}" fill="none" stroke="{color}" stroke-width="2"/>')
        text = f"{label} ({low:g} to {high:g})"
        if x > LEFT and x + LETTER * len(text) > WIDTH - RIGHT:
            x, y = float(LEFT), y + LEGEND_LINE
        shown.append(f'<text x="{x:.0f}" y="{y}" fill="{color}">{escape(text)}</text>')
        x += LETTER * len(text) + 14
    return "\n".join([*shown, "</g>", "</svg>"]) + "\n"


def axis(values: Sequence[float]) -> tuple[float, float]:
    """The ends of the axis of a curve: 0 to 1 for fractions, else round numbers, from 0 if the curve comes near it."""
    low, high = min(values), max(values)
    if low >= 0 and 0.2 <= high <= 1:
        return 0.0, 1.0
    if 0 <= low < high / 2 or low == high > 0:
        low = 0.0
    unit = 10.0 ** math.floor(math.log10(high - low or abs(high) or 1.0))
    return math.floor(low / unit + 1e-9) * unit, math.ceil(high / unit - 1e-9) * unit


def _path(points: Points, last: int, low: float, high: float) -> str:
    places = []
    for step, value in points:
        x = LEFT + step / last * (WIDTH - LEFT - RIGHT)
        y = HEIGHT - BOTTOM - (value - low) / (high - low or 1.0) * (HEIGHT - TOP - BOTTOM)
        places.append(f"{x:.1f} {y:.1f}")
    return "M" + " L".join(places)
