"""The decays of the moving averages, by hand."""

import pytest

from tdmr1_core.algorithm.averages import generator_ema_decay, surrogate_ema_decay

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("updates", "expected"), [(1, 2 / 11), (10, 11 / 20), (79, 80 / 89), (80, 0.9), (81, 0.9), (10_000, 0.9)]
)
def test_the_warm_up_ends_at_the_decay(updates, expected):
    assert generator_ema_decay(updates, 0.9, warmup=True) == expected
    assert generator_ema_decay(updates, 0.9, warmup=False) == 0.9


@pytest.mark.parametrize(("updates", "expected"), [(1, 0.001), (300, 0.3), (301, 0.3)])
def test_the_decay_of_the_surrogate_grows_to_its_limit(updates, expected):
    assert surrogate_ema_decay(updates, 0.001, 0.3) == pytest.approx(expected, abs=1e-15)
