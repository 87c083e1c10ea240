"""A thinned curve has few points and the extrema of the curve; small cases are computed by hand."""

import math

import pytest

from tdmr1_core.runs.output.thinning import kept_means, kept_points

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


def test_the_means_of_the_ranges_are_those_of_the_curve():
    # the ranges are (0), (1, 2, 3), (4, 5, 6) and (7); the kept points are 0, 1, 2, 5, 6 and 7
    values = [0.0, 5.0, 1.0, 3.0, 7.0, 8.0, 6.0, 0.0]
    assert kept_means(values, kept_points(values, 6), 6) == [0.0, 3.0, 3.0, 7.0, 7.0, 0.0]
    assert kept_means(values, kept_points(values, 8), 8) == values


def test_a_curve_with_rare_peaks_keeps_its_mean():
    values = [100.0 if step % 10 == 0 else 1.0 for step in range(10_000)]
    kept = kept_points(values)
    assert sum(values[index] for index in kept) / len(kept) == pytest.approx(50.5, abs=1)
    means = kept_means(values, kept)
    assert sum(means) / len(means) == pytest.approx(10.9, abs=0.5)
