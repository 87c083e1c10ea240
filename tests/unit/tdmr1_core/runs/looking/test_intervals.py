"""Confidence intervals, compared with values calculated by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tdmr1_core.runs.evaluation.evaluate import Measure
from tdmr1_core.runs.looking.intervals import Gain, paired_gain, unpaired_gain

pytestmark = pytest.mark.unit


def test_the_interval_of_a_constant_gain_has_width_0() -> None:
    gain = paired_gain(np.array([0.0, 0.25, 0.5]), np.array([0.5, 0.75, 1.0]))
    assert gain == Gain(before=0.25, after=0.75, gain=0.5, low=0.5, high=0.5, n=3)


def test_independent_pairs_have_the_normal_interval() -> None:
    # Half of 400 pairs gain 1: the standard error is 0.5 / sqrt(400) = 0.025.
    after = np.tile([0.0, 1.0], 200)
    gain = paired_gain(np.zeros(400), after)
    assert gain.gain == 0.5
    assert (gain.low, gain.high) == pytest.approx((0.5 - 1.96 * 0.025, 0.5 + 1.96 * 0.025), abs=0.005)


def test_equal_pairs_within_a_prompt_count_as_one() -> None:
    # 100 prompts of 16 equal pairs each: the standard error is 0.5 / sqrt(100) = 0.05, not 0.5 / sqrt(1600).
    after = np.repeat(np.tile([0.0, 1.0], 50), 16)
    gain = paired_gain(np.zeros(1600), after, np.repeat(np.arange(100), 16))
    assert (gain.low, gain.high) == pytest.approx((0.5 - 1.96 * 0.05, 0.5 + 1.96 * 0.05), abs=0.012)


def test_pairs_within_one_prompt_are_resampled() -> None:
    after = np.tile([0.0, 1.0], 200)
    gain = paired_gain(np.zeros(400), after, np.zeros(400))
    assert gain.high - gain.low == pytest.approx(2 * 1.96 * 0.025, abs=0.01)


def test_prompts_are_weighted_by_their_number_of_pairs_in_any_order() -> None:
    # Prompt b has three of four pairs. A resample draws aa, ab, ba or bb, with the means 0, 3/4, 3/4 and 1.
    gain = paired_gain(np.zeros(4), np.array([1.0, 0.0, 1.0, 1.0]), np.array(["b", "a", "b", "b"]))
    assert (gain.gain, gain.low, gain.high) == (0.75, 0.0, 1.0)


def test_differences_are_paired() -> None:
    before = np.random.default_rng(0).normal(0, 100, size=50)
    gain = paired_gain(before, before + 1)
    assert (gain.low, gain.high) == pytest.approx((1, 1))


def test_the_interval_depends_only_on_the_seed() -> None:
    before, after = np.random.default_rng(0).random((2, 30))
    assert paired_gain(before, after, seed=1) == paired_gain(before, after, seed=1)
    assert paired_gain(before, after, seed=1) != paired_gain(before, after, seed=2)


def test_pairs_with_nan_are_omitted() -> None:
    gain = paired_gain(np.array([0, np.nan, 5]), np.array([1, 9, np.nan]))
    assert gain == Gain(before=0, after=1, gain=1, low=1, high=1, n=1)
    with pytest.raises(ValueError, match="no pair has two values"):
        paired_gain(np.array([np.nan]), np.array([1.0]))


def test_different_lengths_are_rejected() -> None:
    with pytest.raises(ValueError, match="same length"):
        paired_gain(np.zeros(3), np.zeros(4))
    with pytest.raises(ValueError, match="same length"):
        paired_gain(np.zeros(3), np.zeros(3), np.zeros(2))


def test_means_of_other_images_have_welchs_interval() -> None:
    # Variances 9/10 and 16/8 of the means: 2.9 in all. Degrees of freedom 2.9^2 / (0.81/9 + 4/7) = 12.713.
    # Student's t at 97.5 % is 2.1604 for 13 degrees and 2.1788 for 12; for 12.713 it is 2.1654.
    before, after = Measure(1.0, 3 / np.sqrt(10), 10), Measure(4.0, 4 / np.sqrt(8), 8)
    gain = unpaired_gain(before, after)
    assert (gain.before, gain.after, gain.gain, gain.n) == (1, 4, 3, 8)
    half = 2.1654 * np.sqrt(2.9)
    assert (gain.low, gain.high) == pytest.approx((3 - half, 3 + half), abs=2e-3)


def test_means_without_spread_have_an_interval_of_width_0_and_unknown_errors_none() -> None:
    gain = unpaired_gain(Measure(1.0, 0.0, 4), Measure(2.0, 0.0, 4))
    assert (gain.low, gain.high) == (1, 1)
    assert np.isnan(unpaired_gain(Measure(1.0, np.nan, 1), Measure(2.0, 0.5, 4)).low)
