"""Draws prompts by how much they still teach: a group whose rewards are all equal has no advantages.

N is the number of prompts. The estimate of a prompt is a moving average of the spread of its groups: the standard
deviation of their rewards. All functions are pure, and tensors are float64 on the CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

RATE = 0.5
"""The weight of a new spread in the moving average of a prompt. The spreads change while the model learns."""


def update_estimate(estimate: float, spread: float) -> float:
    """The estimate of a prompt after a group with this spread. NaN is the estimate of a prompt without a group."""
    return spread if estimate != estimate else estimate + RATE * (spread - estimate)


def prompt_probabilities(estimates: Tensor, floor: float) -> Tensor:
    """The probability (N,) of each prompt in a single draw: floor / N + (1 - floor) x estimate^2 / sum of estimate^2.

    The square, the variance of the rewards, is what a small step along their gradient gains. A prompt without an
    estimate (NaN) gets the mean of the others: more than one without signal, so that it is tried first. `floor` is in
    [0, 1]. All prompts are equally likely if no estimate is positive.
    """
    known = ~estimates.isnan()
    uniform = torch.full_like(estimates, 1 / len(estimates))
    largest = estimates[known].max() if bool(known.any()) else torch.zeros(())
    if largest <= 0:
        return uniform
    relative = estimates / largest  # the squares of large estimates would overflow
    variances = torch.where(known, relative, relative[known].mean()).square()
    return floor * uniform + (1 - floor) * variances / variances.sum()


def draw_prompts(probabilities: Tensor, count: int, generator: torch.Generator) -> list[int]:
    """The indices of `count` prompts. They are different, unless there are fewer than `count` prompts.

    Different prompts are drawn one after another, each with its probability (N,) among those that are left: the
    smallest of N exponential random numbers with these rates. Otherwise the draws are independent.
    """
    if count > len(probabilities):
        uniform = torch.rand(count, generator=generator, dtype=torch.float64)
        ends = probabilities.cumsum(0)
        return torch.searchsorted(ends / ends[-1], uniform, right=True).tolist()
    uniform = torch.rand(len(probabilities), generator=generator, dtype=torch.float64)
    return (-uniform.log() / probabilities).argsort(stable=True)[:count].tolist()


def effective_number(probabilities: Tensor) -> float:
    """The number of equally likely prompts for which two draws are as often the same: 1 / the sum of p squared."""
    return 1 / probabilities.square().sum().item()
