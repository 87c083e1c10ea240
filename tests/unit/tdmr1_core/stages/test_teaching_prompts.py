"""The draws of teaching prompts follow the observed spreads, from the end of an iteration on."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from tdmr1_core.records import Groups, Prompt
from tdmr1_core.stages.teaching_prompts import TeachingPrompts

pytestmark = pytest.mark.unit

TEXTS = ("a", "b", "c", "d")


def make(*texts: str, floor: float = 0.1) -> TeachingPrompts:
    """Teaching prompts with these texts."""
    return TeachingPrompts([Prompt(text, {"place": i}) for i, text in enumerate(texts or TEXTS)], floor)


def observe(teaching: TeachingPrompts, completed: int, **spreads: float) -> dict[str, float]:
    """Observe the spreads of texts."""
    groups = Groups(completed, tuple(Prompt(text, {}) for text in spreads), 2)
    return teaching.observe(
        teaching.numbers(groups), torch.tensor(list(spreads.values()), dtype=torch.float64), completed
    )


def draws(teaching: TeachingPrompts, completed: int, count: int = 300) -> dict[str, float]:
    """How often each text is the only prompt of an iteration (fraction), with fixed estimates."""
    drawn = [teaching.next_groups(i, completed, 1, 2, 0).prompts[0].text for i in range(count)]
    return {text: drawn.count(text) / count for text in TEXTS}


def test_prompts_of_an_iteration_are_different_and_follow_from_seed_and_iteration() -> None:
    def drawn(iteration: int, seed: int) -> Groups:
        return make(*"abcdefghij").next_groups(iteration, 0, 6, 3, seed)

    groups = drawn(4, 7)
    assert (groups.iteration, groups.group_size, len({prompt.text for prompt in groups.prompts})) == (4, 3, 6)
    assert groups == drawn(4, 7)
    others = [drawn(5, 7).prompts, drawn(4, 8).prompts]
    assert groups.prompts not in others
    assert others[0] != others[1]


def test_a_prompt_with_a_large_spread_is_drawn_more_often() -> None:
    teaching = make()
    observe(teaching, 0, a=0.5, b=0.0)
    found = draws(teaching, 1)
    # a has 0.5, c and d the mean 0.25, b nothing, so their squares are 4, 1, 1 and 0 sixths; the floor is 0.1 / 4.
    expected = {"a": 0.625, "b": 0.025, "c": 0.175, "d": 0.175}
    assert found == pytest.approx(expected, abs=0.08)


def test_observations_count_from_the_end_of_their_iteration_on() -> None:
    teaching = make()
    observe(teaching, 0, a=0.5)
    before = teaching.next_groups(9, 0, 4, 2, 0)
    assert teaching.state(0) == {}
    assert teaching.state(1) == {"0": 0.5}
    observe(teaching, 1, a=0.0, b=1.0)
    observe(teaching, 1, a=0.1)  # the same iteration again: only the last counts
    assert teaching.state(1) == {"0": 0.5}
    assert teaching.state(2) == pytest.approx({"0": 0.3})
    assert before == make().next_groups(9, 0, 4, 2, 0), "without observations"


def test_unknown_spreads_and_foreign_prompts_are_ignored() -> None:
    teaching = make()
    metrics = observe(teaching, 0, a=math.nan, b=math.inf, z=0.5, c=0.25)
    assert metrics == {"teaching/effective_prompts": 4, "teaching/tried": 0}
    assert teaching.state(1) == {"2": 0.25}


def test_metrics_describe_the_probabilities_of_this_iteration() -> None:
    teaching = make()
    observe(teaching, 0, a=1.0, b=0.0, c=0.0, d=0.0)
    metrics = observe(teaching, 1, b=0.5)
    # 0.1 / 4 each, and 0.9 for a
    assert metrics["teaching/effective_prompts"] == pytest.approx(1 / (0.925**2 + 3 * 0.025**2))
    assert metrics["teaching/tried"] == 1


def test_prompts_with_the_same_text_share_an_estimate() -> None:
    teaching = make("a", "b", "a")
    observe(teaching, 0, a=1.0, b=0.0)
    drawn = [teaching.next_groups(i, 1, 1, 2, 0).prompts[0].metadata["place"] for i in range(200)]
    assert {0, 2} <= set(drawn)
    assert drawn.count(1) < 20
    assert teaching.state(1) == {"0": 1.0, "1": 0.0}


def test_more_groups_than_prompts() -> None:
    teaching = make()
    observe(teaching, 0, a=1.0, b=0.0, c=0.0, d=0.0)
    drawn = [prompt.text for prompt in teaching.next_groups(0, 1, 100, 2, 0).prompts]
    assert drawn.count("a") > 80
    assert set(drawn) == set(TEXTS)


def test_a_restored_state_continues_with_the_same_bits() -> None:
    one, two = make(), make()
    observe(one, 0, a=0.1, b=1 / 3)
    observe(one, 1, a=0.7)
    observe(two, 5, d=0.5)  # is lost
    two.restore(json.loads(json.dumps(one.state(2))))
    assert one.state(2) == two.state(9) == pytest.approx({"0": 0.4, "1": 1 / 3})
    assert [one.next_groups(i, 2, 2, 2, 3) for i in range(9)] == [two.next_groups(i, 2, 2, 2, 3) for i in range(9)]


def test_a_state_of_more_prompts_is_restored_as_far_as_they_exist() -> None:
    """As for a run that is only sampled, whose prompts are missing."""
    teaching = make("a")
    teaching.restore({"0": 0.5, "7": 0.25})
    assert teaching.state(0) == {"0": 0.5}
    assert TeachingPrompts([], 0.1).state(0) == {}
    groups = replace(Groups(0, (Prompt("b", {}),), 2), first=3)
    assert teaching.numbers(groups) == [None]
