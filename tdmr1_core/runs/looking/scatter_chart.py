"""A small scatter chart as inline SVG."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np

SIZE, MARGIN = 240, 34
"""Width and height, and the room for the numbers on the axes, in units of the SVG."""
END_MARGIN = 14


def scatter_chart(horizontal: np.ndarray, vertical: Sequence[float | None], title: str) -> str:
    """Points with both values, as SVG. Equal values lie in the middle of their axis. `title` names the chart."""
    points = [(float(x), float(y)) for x, y in zip(horizontal, vertical, strict=True) if y is not None]
    inner = SIZE - MARGIN - END_MARGIN
    left, right = _ends([x for x, _ in points])
    bottom, top = _ends([y for _, y in points])
    parts = [
        f'<svg viewBox="0 0 {SIZE} {SIZE}" role="img" aria-label="{html.escape(title)}: '
        f'{len(points)} images, implicit reward against final reward">',
        f'<line class="axis" x1="{MARGIN}" y1="{SIZE - MARGIN}" x2="{SIZE - END_MARGIN}" y2="{SIZE - MARGIN}"/>',
        f'<line class="axis" x1="{MARGIN}" y1="{END_MARGIN}" x2="{MARGIN}" y2="{SIZE - MARGIN}"/>',
    ]
    for x, y in points:
        across = MARGIN + inner * (x - left) / (right - left)
        down = SIZE - MARGIN - inner * (y - bottom) / (top - bottom)
        parts.append(f'<circle class="point" cx="{across:.1f}" cy="{down:.1f}" r="4.5" fill-opacity="0.7"/>')
    if points:
        labels = [
            (MARGIN, SIZE - MARGIN + 16, "start", left),
            (SIZE - END_MARGIN, SIZE - MARGIN + 16, "end", right),
            (MARGIN - 4, SIZE - MARGIN, "end", bottom),
            (MARGIN - 4, END_MARGIN + 8, "end", top),
        ]
        parts += [
            f'<text x="{x}" y="{y}" font-size="11" text-anchor="{anchor}">{value:.2g}</text>'
            for x, y, anchor, value in labels
        ]
    return "".join(parts) + "</svg>"


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """The least and the largest value; a range around the value if all are equal, or 0 to 1 without values."""
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 1.0, high + 1.0)
