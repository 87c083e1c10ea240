"""The noise of an evaluation depends only on the seed and the prompt, and no noise is used twice; the noise levels."""

import pytest
import torch
from support.product import make_engine

from tdmr1_core.models.roles import GENERATOR, GENERATOR_EMA, TEACHER
from tdmr1_core.records import Prompt
from tdmr1_core.runs.evaluation import evaluate as evaluate_module
from tdmr1_core.runs.evaluation.evaluate import evaluation_noise, sample_images

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


EULER, SCHEDULER = [1, 0.9, 0.75, 0.5, 0], [0.99967, 0.89964, 0.74962, 0.49967, 0]


@pytest.mark.parametrize(
    ("rollout", "expected"),
    [
        ({}, EULER),
        ({"dpm_levels": "euler"}, EULER),
        ({"sampler": "dpm-solver++"}, SCHEDULER),
        ({"sampler": "dpm-solver++", "dpm_levels": "euler"}, EULER),
    ],
)
def test_training_and_evaluation_use_the_same_noise_levels(rollout, expected, monkeypatch):
    engine = make_engine({"rollout": rollout, "batch": {"groups": 2, "group_size": 2}})
    assert engine.sigmas.tolist() == pytest.approx(expected, abs=5e-6)
    assert engine.rollout(engine.next_groups()).sigmas is engine.sigmas
    used = []
    sample = evaluate_module.sample

    def recorded(backbone, noise, conditioning, sigmas, **options):
        used.append((sigmas, options["sampler"]))
        return sample(backbone, noise, conditioning, sigmas, **options)

    monkeypatch.setattr(evaluate_module, "sample", recorded)
    for role, sampler in ((GENERATOR, None), (GENERATOR_EMA, "euler"), (TEACHER, None)):  # "euler" as in an export
        sample_images(engine, role, engine.prompts[:1], 1, 5, sampler=sampler)
    assert torch.equal(used[0][0], engine.sigmas)
    assert torch.equal(used[1][0], engine.sigmas)
    assert (len(used[2][0]), used[2][0][0]) == (29, 1)
    assert [sampler for _, sampler in used] == [rollout.get("sampler", "euler"), "euler", "euler"]
