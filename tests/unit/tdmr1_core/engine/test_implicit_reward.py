"""The implicit rewards that `tdmr1 explain` shows, compared with the naive implementation in support/naive.py."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from support.naive import PROMPTS, Naive, Settings, Stored, level, tiny_transformer
from support.product import ALPHA, RANK, brightness, make_engine, start_loras

from tdmr1_core.algorithm import seeds
from tdmr1_core.algorithm.objectives import implicit_reward
from tdmr1_core.engine import Engine
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.roles import SURROGATE_EMA
from tdmr1_core.records import Prompt
from tdmr1_core.runs.evaluation.evaluate import sample_images
from tdmr1_core.runs.looking.explain import explain
from tdmr1_core.runs.looking.implicit_rewards import step_rewards

pytestmark = pytest.mark.unit

PROMPT = Prompt(PROMPTS[2], {})
SIGMAS = (1.0, 0.9, 0.75, 0.5, 0.0)
TAU_MIN, BETA, SEED, IMAGES, DRAWS = 0.55, 4.0, 5, 3, 2


def engine_with(reference: str = "frozen", micro_batch: int | None = None, **top) -> Engine:
    surrogate = {"beta_dpo": BETA, "tau_min": TAU_MIN, "reference": reference}
    sections = {"surrogate": surrogate, "batch": {"groups": 1, "group_size": 2, "micro_batch": micro_batch}}
    return make_engine(sections, seed=9, reward=brightness, **top)


def test_the_implicit_reward_is_positive_where_the_surrogate_fits_better_than_its_reference():
    # 4 (0.5 - 0.25) = 1, and 4 (0.25 - 0.5) = -1
    loss, reference_loss = torch.tensor([0.25, 0.5]), torch.tensor([0.5, 0.25])
    assert implicit_reward(loss, reference_loss, 4.0).tolist() == [1.0, -1.0]


@pytest.mark.parametrize("reference", ["frozen", "ema"])
def test_rewards_and_directions_equal_those_of_the_naive_implementation(reference):
    settings = Settings(beta=BETA, reference=SURROGATE_EMA if reference == "ema" else "reference")
    naive = Naive(tiny_transformer(), ALPHA / RANK, start_loras())
    naive.loras["generator"] = naive.loras["generator_ema"]  # it samples
    noise = seeds.noise(SEED, f"evaluation/{PROMPT.text}", (), range(IMAGES), (4, 4, 4)).double()
    texts = [PROMPT.text] * IMAGES
    at = Stored(naive.rollout(list(noise), texts, SIGMAS), SIGMAS, texts, IMAGES)

    found = step_rewards(engine_with(reference), PROMPT, images=IMAGES, seed=SEED, draws=DRAWS, strength=1.0)
    for k, step in enumerate(found):
        expected, directions = [], []
        for draw in range(DRAWS):
            uniform = seeds.uniform(SEED, "tau-surrogate", (0, k, draw), [0])
            taus = [level(float(uniform[0]), max(SIGMAS[k + 1], TAU_MIN))] * IMAGES
            eps = seeds.noise(SEED, "surrogate", (0, k, draw), [0], (4, 4, 4)).double()[0]
            rewards, moved = naive.implicit(settings, at, k, taus, [eps] * IMAGES)
            expected.append(rewards)
            directions.append(torch.stack(moved))
        assert step.implicit == pytest.approx(np.array(expected), rel=1e-9, abs=1e-12)
        lengths = (sum(directions) / DRAWS).square().sum(1).sqrt()  # over the channels
        assert step.direction == pytest.approx(lengths.numpy(), rel=1e-9)
        assert lengths.max() > 1e-3


def test_the_last_step_predicts_the_images_that_sample_writes_and_the_target_moves_them():
    engine = engine_with()
    found = step_rewards(engine, PROMPT, images=IMAGES, seed=SEED, draws=1, strength=0.0)
    sampled = sample_images(engine, "generator_ema", [PROMPT], IMAGES, SEED)
    assert (found[-1].images == sampled.images).all()
    assert (found[0].images != sampled.images).any()
    assert all((step.targets == step.images).all() for step in found), "with strength 0"
    moved = step_rewards(engine, PROMPT, images=IMAGES, seed=SEED, draws=1, strength=5.0)
    assert (moved[-1].targets != moved[-1].images).any()


def test_micro_batches_change_nothing():
    whole = step_rewards(engine_with(), PROMPT, images=IMAGES, seed=SEED, draws=DRAWS, strength=1.0)
    parts = step_rewards(engine_with(micro_batch=2), PROMPT, images=IMAGES, seed=SEED, draws=DRAWS, strength=1.0)
    for one, other in zip(whole, parts, strict=True):
        assert one.implicit == pytest.approx(other.implicit, abs=1e-12)
        assert one.direction == pytest.approx(other.direction, abs=1e-12)


def test_an_explanation_has_the_true_reward_of_each_step_and_is_the_same_again():
    engine = engine_with()
    runner = engine.scoring.runner
    found = explain(engine, runner, PROMPT, images=IMAGES, seed=SEED, draws=DRAWS)
    for step in found.steps:
        means = [float(image.astype(float).mean()) for image in step.view.images]
        assert step.total == pytest.approx(means)
        assert step.rewards == {"probe": step.total}
    assert [step.levels for step in found.steps] == [pytest.approx(pair) for pair in pairwise(SIGMAS)]
    again = explain(engine, runner, PROMPT, images=IMAGES, seed=SEED, draws=DRAWS)
    for one, other in zip(found.steps, again.steps, strict=True):
        assert (one.implicit == other.implicit).all()
        assert one.total == other.total
    engine.close()


def test_a_distillation_has_nothing_to_explain():
    engine = make_engine({"batch": {"groups": 1, "group_size": 2}}, kind="distill")
    with pytest.raises(Tdmr1Error, match="no surrogate reward") as caught:
        step_rewards(engine, PROMPT, images=2, seed=0, draws=1, strength=1.0)
    assert caught.value.code == "distillation-no-rewards"
