"""The curves of docs/troubleshooting.md: drawn by formulas, labelled as sketches, as small SVG files."""

from __future__ import annotations

import math
from collections.abc import Callable
from html import escape

WIDTH, HEIGHT = 360, 190
LEFT, RIGHT, TOP, BOTTOM = 14, 12, 30, 44
"""The margins of the axes, in pixels."""
POINTS = 60
COLORS = ("#1d4ed8", "#b45309", "#15803d")
"""Dark enough to be read on white."""

Curve = Callable[[float], float]
"""A height from 0 to 1 at a time from 0 to 1."""


def rising(end: float, start: float = 0.2, speed: float = 4.0) -> Curve:
    """A curve that rises from `start` and flattens near `end`; it falls if `end` is lower."""
    return lambda t: start + (end - start) * (1 - math.exp(-speed * t)) / (1 - math.exp(-speed))


def flat(height: float) -> Curve:
    """A constant."""
    return lambda t: height


def collapsing(top: float, peak: float, end: float, start: float = 0.2) -> Curve:
    """A curve that rises to `top` at the time `peak`, and then falls to `end`."""

    def height(t: float) -> float:
        if t < peak:
            return start + (top - start) * math.sin(math.pi / 2 * t / peak)
        return top + (end - top) * (1 - math.cos(math.pi / 2 * min(1, (t - peak) / (1 - peak) * 1.6)))

    return height


SKETCHES: dict[str, dict[str, Curve]] = {
    "healthy": {
        "reward/mean": rising(0.85),
        "held-out reward": flat(0.5),
        "surrogate/drift": rising(0.3, 0.05, 2),
    },
    "no_signal": {"reward/mean": flat(0.25), "zero_std_ratio": flat(0.9)},
    "signal_ends": {"reward/mean": rising(0.9, 0.3, 6), "zero_std_ratio": lambda t: 0.1 + 0.78 * t**1.5},
    "rates_too_low": {
        "reward/mean": rising(0.26, 0.2, 1),
        "surrogate/drift": rising(0.06, 0.03, 1),
        "grad_norm/generator": flat(0.55),
    },
    "rates_too_high": {
        "reward/mean": collapsing(0.6, 0.3, 0.12),
        "grad_norm/generator": lambda t: min(0.95, 0.3 + 0.9 * t**2),
    },
    "penalty_too_strong": {"reward/mean": rising(0.3, 0.2, 2), "surrogate/drift": flat(0.04)},
    "penalty_too_weak": {
        "reward/mean": collapsing(0.7, 0.55, 0.45),
        "surrogate/drift": lambda t: 0.05 + 0.85 * t**1.7,
        "held-out reward": rising(0.15, 0.55, 1),
    },
    "hacked": {
        "reward/mean": rising(0.95, 0.2, 3),
        "held-out reward": rising(0.2, 0.6, 2),
        "diversity": rising(0.08, 0.45, 2.5),
    },
}
"""The curves of each sketch by name."""


def sketch(name: str) -> str:
    """The SVG file of a sketch."""
    curves = SKETCHES[name]
    shown = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#ffffff" stroke="#9ca3af"/>',
        '<g font-family="sans-serif" font-size="12">',
        f'<text x="{WIDTH - RIGHT}" y="20" text-anchor="end" fill="#4b5563">sketch, not data</text>',
        f'<path d="M{LEFT} {TOP} V{HEIGHT - BOTTOM} H{WIDTH - RIGHT}" fill="none" stroke="#4b5563"/>',
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - BOTTOM + 14}" text-anchor="end" fill="#4b5563">iteration</text>',
    ]
    left = LEFT
    for (label, curve), color in zip(curves.items(), COLORS, strict=False):
        shown.append(f'<path d="{_path(curve, label)}" fill="none" stroke="{color}" stroke-width="2"/>')
        shown.append(f'<text x="{left}" y="{HEIGHT - 10}" fill="{color}">{escape(label)}</text>')
        left += round(7 * len(label)) + 16
    return "\n".join([*shown, "</g>", "</svg>"]) + "\n"


def _path(curve: Curve, label: str) -> str:
    """The path of a curve, with the unevenness of measured curves."""
    points = []
    for number in range(POINTS + 1):
        t = number / POINTS
        uneven = 0.018 * (math.sin(1.7 * number + len(label)) + math.sin(0.61 * number * len(label)))
        height = max(0.0, min(1.0, curve(t) + uneven))
        x, y = LEFT + t * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - height * (HEIGHT - TOP - BOTTOM)
        points.append(f"{x:.1f} {y:.1f}")
    return "M" + " L".join(points)
