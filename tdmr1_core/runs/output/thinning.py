"""Thins a curve to a limited number of points, so that a report stays small."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

MOST_POINTS = 2000
"""The largest number of points of a curve in a report."""


def kept_points(values: Sequence[float], most: int = MOST_POINTS) -> list[int]:
    """The indices of at most `most` values that keep the shape of a curve, in ascending order.

    All are kept if there are no more than `most`. Otherwise, of each of the `point_ranges` the smallest and the largest
    value are kept, so the extrema of the curve stay. `most` is at least 4; the values are finite.
    """
    if len(values) <= most:
        return list(range(len(values)))
    kept = set()
    for indices in point_ranges(len(values), most):
        kept |= {min(indices, key=values.__getitem__), max(indices, key=values.__getitem__)}
    return sorted(kept)


def kept_means(values: Sequence[float], kept: Sequence[int], most: int = MOST_POINTS) -> list[float]:
    """For each kept point, the mean of the values in its range: the extrema alone have another mean than the curve.

    The values themselves if all are kept. `kept` may come from another curve of the same length.
    """
    if len(values) <= most:
        return list(values)
    means = {}
    for indices in point_ranges(len(values), most):
        means.update(dict.fromkeys(indices, sum(values[index] for index in indices) / len(indices)))
    return [means[index] for index in kept]


def point_ranges(count: int, most: int = MOST_POINTS) -> list[range]:
    """The ranges of `count` points: the first point, the last one, and ranges of nearly equal length between them."""
    inner, ranges = count - 2, (most - 2) // 2
    limits = [1 + number * inner // ranges for number in range(ranges + 1)]
    between = [range(low, high) for low, high in itertools.pairwise(limits)]
    return [range(1), *between, range(count - 1, count)]
