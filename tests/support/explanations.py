"""A made-up explanation of a group of four images in two steps, with known numbers."""

from __future__ import annotations

import numpy as np

from tdmr1_core.prompts.prompt import Prompt
from tdmr1_core.runs.looking.explain import ExplainedStep, Explanation, rank_correlation, relative_to_group
from tdmr1_core.runs.looking.implicit_rewards import StepReward

FINAL = (0.5, 1.0, None, 0.25)
"""The combined rewards of the final images."""


def made_up(prompt: str = "two <b>red</b> circles", side: int = 24, **changes) -> Explanation:
    """The explanation; images have `side` x `side` pixels, and `changes` replace its fields."""
    generator = np.random.default_rng(0)
    steps = []
    for number, (levels, total) in enumerate((((1.0, 0.5), (0.5, 0.5, 0.5, 0.5)), ((0.5, 0.0), FINAL)), 1):
        implicit = np.array([[0.125, 0.5, 0.0, -0.125], [0.25, 0.5, 0.0, -0.25]]) * number
        view = StepReward(
            implicit,
            np.abs(generator.normal(size=(4, 6, 6))),
            generator.integers(0, 255, (4, side, side, 3)).astype(np.uint8),
            generator.integers(0, 255, (4, side, side, 3)).astype(np.uint8),
        )
        relative, error = relative_to_group(implicit)
        correlations = rank_correlation(relative, FINAL), rank_correlation(relative, total)
        rewards = {"object_count": total, "neatness": (1.0, 1.0, 1.0, 1.0)}
        steps.append(ExplainedStep(number, levels, view, relative, error, rewards, total, *correlations))
    values = {
        "seed": 3,
        "draws": 2,
        "strength": 1.0,
        "iteration": 70,
        "model": "tiny-tdm",
        "boundary": "last",
        "reference": "frozen",
    }
    return Explanation(Prompt(prompt, {}), **{**values, "steps": tuple(steps), **changes})
