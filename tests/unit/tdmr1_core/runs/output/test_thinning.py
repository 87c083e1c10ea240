"""A thinned curve has few points and the extrema of the curve; small cases are computed by hand."""

import math

import pytest

from tdmr1_core.runs.output.thinning import kept_points

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("values", "most", "kept"),
    [
        ([], 4, []),
        ([5.0], 4, [0]),
        ([1.0, 3.0, 2.0, 0.0], 4, [0, 1, 2, 3]),
        # one range: 1 to 4; its smallest value is at 3 and its largest at 2
        ([0.0, 1.0, 9.0, -4.0, 2.0, 3.0], 4, [0, 2, 3, 5]),
        # two ranges of three values: (1, 2, 3) and (4, 5, 6)
        ([0.0, 5.0, 1.0, 3.0, 7.0, 8.0, 6.0, 0.0], 6, [0, 1, 2, 5, 6, 7]),
        # a range whose values are equal keeps one of them
        ([2.0] * 6, 4, [0, 1, 5]),
    ],
)
def test_small_curves(values, most, kept):
    assert kept_points(values, most) == kept


def test_the_extrema_of_a_long_curve_are_kept():
    values = [math.sin(step / 300) for step in range(10_000)]
    values[4321], values[8765] = 50.0, -50.0
    kept = kept_points(values)
    assert len(kept) <= 2000
    assert {0, 4321, 8765, 9999} <= set(kept)
    assert kept == sorted(set(kept))
