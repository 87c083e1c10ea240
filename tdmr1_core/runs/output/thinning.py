"""Thins a curve to a limited number of points, so that a report stays small."""

from __future__ import annotations

from collections.abc import Sequence

MOST_POINTS = 2000
"""The largest number of points of a curve in a report."""


def kept_points(values: Sequence[float], most: int = MOST_POINTS) -> list[int]:
    """The indices of at most `most` values that keep the shape of a curve, in ascending order.

    All are kept if there are no more than `most`. Otherwise, the first and the last value are kept, and the values
    between are divided into ranges of nearly equal length, of which the smallest and the largest value are kept. So the
    extrema of the curve stay. `most` is at least 4; the values are finite.
    """
    if len(values) <= most:
        return list(range(len(values)))
    inner = len(values) - 2
    ranges = (most - 2) // 2
    kept = {0, len(values) - 1}
    for number in range(ranges):
        indices = range(1 + number * inner // ranges, 1 + (number + 1) * inner // ranges)
        kept.add(min(indices, key=values.__getitem__))
        kept.add(max(indices, key=values.__getitem__))
    return sorted(kept)
