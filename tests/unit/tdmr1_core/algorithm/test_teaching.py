"""Prompts that still teach: estimates, probabilities and draws, by hand and against an independent implementation."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import pytest
import torch
from torch import Tensor

from tdmr1_core.algorithm import seeds
from tdmr1_core.algorithm.teaching import draw_prompts, effective_number, prompt_probabilities, update_estimate

pytestmark = pytest.mark.unit

NAN = math.nan


def numbers(*values: float) -> Tensor:
    """A float64 tensor."""
    return torch.tensor(values, dtype=torch.float64)


def test_an_estimate_begins_with_the_first_spread_and_then_moves_half_way() -> None:
    assert update_estimate(NAN, 0.4) == 0.4
    assert update_estimate(0.4, 0.0) == 0.2
    assert update_estimate(0.2, 1.0) == pytest.approx(0.6)
    assert update_estimate(NAN, 0.0) == 0.0


@pytest.mark.parametrize(
    ("estimates", "floor", "expected"),
    [
        ((1, 3), 0.2, (0.1 + 0.8 / 10, 0.1 + 0.8 * 9 / 10)),
        # The prompt without an estimate gets (0 + 2) / 2 = 1; squares 0, 4 and 1.
        ((0, 2, NAN), 0.3, (0.1, 0.1 + 0.7 * 4 / 5, 0.1 + 0.7 / 5)),
        ((0, 2, NAN), 0, (0, 4 / 5, 1 / 5)),
        ((5, 1), 1, (0.5, 0.5)),
        ((NAN, NAN, NAN, NAN), 0.1, (0.25, 0.25, 0.25, 0.25)),
        ((0, 0, NAN, NAN), 0.1, (0.25, 0.25, 0.25, 0.25)),
        ((7,), 0.5, (1,)),
        # In units of 1e308: 1, 1, 2 / 3 and 0; squares 9 / 9, 9 / 9, 4 / 9 and 0.
        ((1e308, 1e308, NAN, 0), 0.2, (0.05 + 0.8 * 9 / 22, 0.05 + 0.8 * 9 / 22, 0.05 + 0.8 * 4 / 22, 0.05)),
        ((5e-324, 0), 0.2, (0.9, 0.1)),
    ],
)
def test_probabilities(estimates: tuple[float, ...], floor: float, expected: tuple[float, ...]) -> None:
    found = prompt_probabilities(numbers(*estimates), floor)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(list(expected), rel=1e-12)


def naive_probabilities(estimates: list[float], floor: float) -> list[float]:
    """The same rule in plain Python."""
    known = [value for value in estimates if not math.isnan(value)]
    filled = [math.fsum(known) / len(known) if math.isnan(value) else value for value in estimates] if known else []
    total = math.fsum(value**2 for value in filled)
    count = len(estimates)
    return [floor / count + (1 - floor) * value**2 / total for value in filled] if total else [1 / count] * count


def naive_draw(probabilities: list[float], count: int, uniform: list[float]) -> list[int]:
    """Exponential clocks: prompts in the order in which their clock rings, found by repeated search."""
    rings = {index: -math.log(value) / probabilities[index] for index, value in enumerate(uniform)}
    chosen = []
    for _ in range(count):
        first = min(rings, key=rings.__getitem__)
        chosen.append(first)
        del rings[first]
    return chosen


def naive_repeated_draw(probabilities: list[float], uniform: list[float]) -> list[int]:
    """The first prompt at which the summed probabilities exceed the random number, for each number."""
    ends = list(itertools.accumulate(probabilities))
    return [next(index for index, end in enumerate(ends) if value * ends[-1] < end) for value in uniform]


def test_a_naive_implementation_gives_the_same_estimates_probabilities_and_draws() -> None:
    rng = random.Random(5)
    for trial in range(60):
        size, floor = rng.randint(1, 30), rng.choice([0.05, 0.2, 1.0])
        history: list[list[float]] = [
            [rng.choice([0.0, rng.random()]) for _ in range(rng.randint(0, 4))] for _ in range(size)
        ]
        estimates, naive = [NAN] * size, [NAN] * size
        for index, spreads in enumerate(history):
            for spread in spreads:
                estimates[index] = update_estimate(estimates[index], spread)
            if spreads:  # weights 1/2, 1/4, …, and the first spread has the rest
                weights = [0.5 ** (len(spreads) - i) for i in range(len(spreads))]
                weights[0] *= 2
                naive[index] = math.fsum(w * s for w, s in zip(weights, spreads, strict=True))
        assert estimates == pytest.approx(naive, rel=1e-12, nan_ok=True)
        found = prompt_probabilities(numbers(*estimates), floor)
        assert found.tolist() == pytest.approx(naive_probabilities(naive, floor), rel=1e-12)
        for count in {1, (size + 1) // 2, size, size + 3}:
            drawn = draw_prompts(found, count, seeds.stream(trial, "teaching", count))
            stream = seeds.stream(trial, "teaching", count)
            uniform = torch.rand(max(count, size), generator=stream, dtype=torch.float64).tolist()
            if count > size:
                assert drawn == naive_repeated_draw(found.tolist(), uniform)
            else:
                assert drawn == naive_draw(found.tolist(), count, uniform)
                assert len(set(drawn)) == count


def test_different_prompts_are_drawn_one_after_another_with_their_probabilities() -> None:
    """All ordered pairs of three prompts: p_i p_j / (1 - p_i). 5,000 draws, so a standard error is at most 0.007."""
    probabilities, draws = numbers(0.2, 0.3, 0.5), 5000
    found = Counter(tuple(draw_prompts(probabilities, 2, seeds.stream(0, "x", i))) for i in range(draws))
    for i, j in itertools.permutations(range(3), 2):
        p, q = probabilities[i].item(), probabilities[j].item()
        assert found[i, j] / draws == pytest.approx(p * q / (1 - p), abs=0.03)


def test_more_draws_than_prompts_have_the_probabilities() -> None:
    probabilities = numbers(0.1, 0.6, 0.3)
    drawn = draw_prompts(probabilities, 20_000, seeds.stream(0, "x"))
    fractions = [drawn.count(index) / len(drawn) for index in range(3)]
    assert fractions == pytest.approx(probabilities.tolist(), abs=0.02)
    assert set(draw_prompts(numbers(1.0), 4, seeds.stream(0, "x"))) == {0}


def test_a_prompt_without_probability_comes_last() -> None:
    for seed in range(20):
        assert draw_prompts(numbers(0.5, 0, 0.5), 3, seeds.stream(seed, "x"))[2] == 1


def test_effective_number() -> None:
    assert effective_number(numbers(0.25, 0.25, 0.25, 0.25)) == 4
    assert effective_number(numbers(0.5, 0.5, 0, 0)) == 2
    assert effective_number(numbers(0.8, 0.2)) == pytest.approx(1 / 0.68)
