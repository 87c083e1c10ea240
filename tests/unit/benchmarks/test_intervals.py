"""Confidence intervals, compared with values calculated by hand."""

from __future__ import annotations

import intervals
import numpy as np
import pytest

pytestmark = pytest.mark.unit


def test_the_interval_of_a_constant_gain_has_width_0() -> None:
    gain = intervals.paired_gain(np.array([0.0, 0.25, 0.5]), np.array([0.5, 0.75, 1.0]))
    assert gain == intervals.Gain(before=0.25, after=0.75, gain=0.5, low=0.5, high=0.5, n=3)


def test_independent_pairs_have_the_normal_interval() -> None:
    # Half of 400 pairs gain 1: the standard error is 0.5 / sqrt(400) = 0.025.
    after = np.tile([0.0, 1.0], 200)
    gain = intervals.paired_gain(np.zeros(400), after)
    assert gain.gain == 0.5
    assert (gain.low, gain.high) == pytest.approx((0.5 - 1.96 * 0.025, 0.5 + 1.96 * 0.025), abs=0.005)


def test_equal_pairs_within_a_prompt_count_as_one() -> None:
    # 100 prompts of 16 equal pairs each: the standard error is 0.5 / sqrt(100) = 0.05, not 0.5 / sqrt(1600).
    after = np.repeat(np.tile([0.0, 1.0], 50), 16)
    gain = intervals.paired_gain(np.zeros(1600), after, np.repeat(np.arange(100), 16))
    assert (gain.low, gain.high) == pytest.approx((0.5 - 1.96 * 0.05, 0.5 + 1.96 * 0.05), abs=0.012)


def test_pairs_within_one_prompt_are_resampled() -> None:
    after = np.tile([0.0, 1.0], 200)
    gain = intervals.paired_gain(np.zeros(400), after, np.zeros(400))
    assert gain.high - gain.low == pytest.approx(2 * 1.96 * 0.025, abs=0.01)


def test_prompts_are_weighted_by_their_number_of_pairs_in_any_order() -> None:
    # Prompt b has three of four pairs. A resample draws aa, ab, ba or bb, with the means 0, 3/4, 3/4 and 1.
    gain = intervals.paired_gain(np.zeros(4), np.array([1.0, 0.0, 1.0, 1.0]), np.array(["b", "a", "b", "b"]))
    assert (gain.gain, gain.low, gain.high) == (0.75, 0.0, 1.0)


def test_differences_are_paired() -> None:
    before = np.random.default_rng(0).normal(0, 100, size=50)
    gain = intervals.paired_gain(before, before + 1)
    assert (gain.low, gain.high) == pytest.approx((1, 1))


def test_the_interval_depends_only_on_the_seed() -> None:
    before, after = np.random.default_rng(0).random((2, 30))
    assert intervals.paired_gain(before, after, seed=1) == intervals.paired_gain(before, after, seed=1)
    assert intervals.paired_gain(before, after, seed=1) != intervals.paired_gain(before, after, seed=2)


def test_pairs_with_nan_are_omitted() -> None:
    gain = intervals.paired_gain(np.array([0, np.nan, 5]), np.array([1, 9, np.nan]))
    assert gain == intervals.Gain(before=0, after=1, gain=1, low=1, high=1, n=1)
    with pytest.raises(ValueError, match="no pair has two values"):
        intervals.paired_gain(np.array([np.nan]), np.array([1.0]))


def test_different_lengths_are_rejected() -> None:
    with pytest.raises(ValueError, match="same length"):
        intervals.paired_gain(np.zeros(3), np.zeros(4))
    with pytest.raises(ValueError, match="same length"):
        intervals.paired_gain(np.zeros(3), np.zeros(3), np.zeros(2))


def gain_of(gain: float) -> intervals.Gain:
    return intervals.Gain(before=0, after=gain, gain=gain, low=gain, high=gain, n=1)


def test_several_seeds_have_a_t_interval() -> None:
    # Mean 2, standard deviation 1; Student's t at 97.5 % with two degrees of freedom is 4.3027.
    across = intervals.across_seeds([gain_of(1), gain_of(2), gain_of(3)])
    assert (across.mean, across.minimum, across.maximum, across.n) == (2, 1, 3, 3)
    half = 4.3027 / np.sqrt(3)
    assert (across.low, across.high) == pytest.approx((2 - half, 2 + half), abs=1e-4)


def test_one_seed_has_no_interval() -> None:
    across = intervals.across_seeds([gain_of(0.5)])
    assert (across.mean, across.minimum, across.maximum, across.n) == (0.5, 0.5, 0.5, 1)
    assert np.isnan(across.low)
    assert np.isnan(across.high)
    with pytest.raises(ValueError, match="no gains"):
        intervals.across_seeds([])
