"""The decays of the two moving averages of weights: average <- decay average + (1 - decay) weights."""

from __future__ import annotations


def generator_ema_decay(updates: int, decay: float, *, warmup: bool) -> float:
    """The decay for the generator after `updates` (from 1): `decay`, with warm-up at most (1 + n) / (10 + n).

    n is the number of earlier updates, as in the authors' trainer. With decay 0.9 the warm-up lasts 80 updates. After
    ten updates of the same size, the average is 90 % of the way to the weights; without warm-up 41 %.
    """
    earlier = updates - 1
    return min((1 + earlier) / (10 + earlier), decay) if warmup else decay


def surrogate_ema_decay(updates: int, slope: float, largest: float) -> float:
    """The decay for the surrogate after `updates` (from 1): slope n, at most `largest` (Eq. 7-9, trust region)."""
    return min(largest, slope * updates)
