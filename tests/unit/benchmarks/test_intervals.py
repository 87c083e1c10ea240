"""The gains of several training seeds, compared with values calculated by hand."""

from __future__ import annotations

import intervals
import numpy as np
import pytest

from tdmr1_core.runs.looking.intervals import Gain

pytestmark = pytest.mark.unit


def gain_of(gain: float) -> Gain:
    return Gain(before=0, after=gain, gain=gain, low=gain, high=gain, n=1)


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
