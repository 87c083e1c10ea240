"""The noise of an evaluation depends only on the seed and the prompt, and no noise is used twice."""

import pytest
import torch

from tdmr1_core.records import Prompt
from tdmr1_core.runs.evaluation.evaluate import evaluation_noise

pytestmark = pytest.mark.unit


def noise(*texts, per_prompt=2, seed=7):
    return evaluation_noise([Prompt(text, {}) for text in texts], per_prompt, seed, (1, 2, 2))


def test_the_noise_of_a_prompt_does_not_depend_on_other_prompts():
    assert torch.equal(noise("a", "b")[:2], noise("a"))
    assert torch.equal(noise("b", "a")[2:], noise("a"))
    assert not torch.equal(noise("a"), noise("a", seed=8))


def test_a_repeated_prompt_gets_new_noise():
    repeated = noise("a", "b", "a")
    assert torch.equal(repeated[:2], noise("a"))
    assert torch.equal(repeated[[0, 1, 4, 5]], noise("a", per_prompt=4))
    assert len(torch.unique(repeated.flatten(1), dim=0)) == 6
