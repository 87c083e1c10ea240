"""The decays of the moving averages, by hand."""

import pytest

from tdmr1_core.algorithm.averages import generator_ema_decay, surrogate_ema_decay

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("updates", "expected"),
    [(1, 1 / 10), (2, 2 / 11), (10, 10 / 19), (80, 80 / 89), (81, 0.9), (82, 0.9), (10_000, 0.9)],
)
def test_the_warm_up_ends_at_the_decay(updates, expected):
    assert generator_ema_decay(updates, 0.9, warmup=True) == expected
    assert generator_ema_decay(updates, 0.9, warmup=False) == 0.9


@pytest.mark.parametrize(("warmup", "expected"), [(True, 0.9), (False, 0.4138)])
def test_the_average_after_ten_equal_updates(warmup, expected):
    """The weights grow by 1 in each update, from 0."""
    average = 0.0
    for update in range(1, 11):
        decay = generator_ema_decay(update, 0.9, warmup=warmup)
        average = decay * average + (1 - decay) * update
    assert average / 10 == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("updates", "expected"), [(1, 0.001), (300, 0.3), (301, 0.3)])
def test_the_decay_of_the_surrogate_grows_to_its_limit(updates, expected):
    assert surrogate_ema_decay(updates, 0.001, 0.3) == pytest.approx(expected, abs=1e-15)
