"""One whole iteration with the settings of each published preset, compared with the naive implementation.

Five groups of two images in micro-batches of four groups: two blocks of groups have their own random draws.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.naive import Answer, Naive, NaiveAdamW, Settings, Stored, Weights, advantages, level, tiny_transformer
from support.product import ALPHA, RANK, Recorder, brightness, make_engine, start_loras
from torch import Tensor

from tdmr1_core.algorithm import seeds
from tdmr1_core.config import RunConfig
from tdmr1_core.config_loading import read_preset
from tdmr1_core.models.roles import FAKE, GENERATOR, GENERATOR_EMA, REFERENCE, SURROGATE, SURROGATE_EMA

pytestmark = pytest.mark.unit

SEED, GROUPS, SIZE, IMAGES = 5, 5, 2, 10
SIGMAS = (1.0, 0.9, 0.75, 0.5, 0.0)
SECTIONS = ("timesteps", "surrogate", "generator", "fake", "advantages", "optimizer", "rollout")


def block_ids(groups: int) -> list[int]:
    """The block of each image, where `groups` groups are a block."""
    return [image // (SIZE * groups) for image in range(IMAGES)]


def noises(name: str, counters: tuple[int, ...], ids: list[int]) -> list[Tensor]:
    """The noise of each image; images with equal ids have the same."""
    return list(seeds.noise(SEED, name, (0, *counters), ids, (4, 4, 4)).double())


def levels(name: str, counters: tuple[int, ...], ids: list[int], lower: list[float]) -> list[float]:
    """The noise level of each image."""
    uniform = seeds.uniform(SEED, name, (0, *counters), ids)
    return [level(float(u), low) for u, low in zip(uniform, lower, strict=True)]


def steps_of(step: int, ids: list[int]) -> list[int]:
    """The drawn step k of each image."""
    drawn = {i: torch.randperm(4, generator=seeds.stream(SEED, "step", 0, i)).tolist() for i in ids}
    return [drawn[i][step] for i in ids]


def boundaries(step: int, ids: list[int]) -> list[int]:
    """The boundary k of each image, with probabilities 0.1, 0.2, 0.3, 0.4."""
    uniform = seeds.uniform(SEED, "boundary", (0, step, 0), ids)
    return [sum(float(u) >= edge for edge in (0.1, 0.3, 0.6)) for u in uniform]


def settings_of(config: RunConfig) -> Settings:
    """The settings of the losses for the naive implementation."""
    s, g = config.surrogate, config.generator
    return Settings(
        loss=g.loss,
        huber_c=g.huber_c,
        guidance=g.guidance_scale,
        rl_cfg=g.rl_cfg,
        reference=REFERENCE,
        trust_region=s.trust_region,
        drift_threshold=s.drift_threshold,
        penalty=s.reference_penalty,
        beta=s.beta_dpo,
        time_weight=s.time_weight,
        tdm_weight=g.tdm_weight,
        reward_scale=g.reward_scale,
        trunc_steps=g.trunc_steps,
        floor=g.normaliser_floor,
        teacher_weight=config.fake.teacher_weight,
    )


def naive_iteration(config: RunConfig, recorder: Recorder) -> tuple[dict[str, Weights], dict[str, float], Tensor]:
    """The weights after the iteration, the mean losses, and the latents of the rollout."""
    s = settings_of(config)
    world = Naive(tiny_transformer(), ALPHA / RANK, start_loras())
    groups = recorder.trajectory.groups
    texts = [groups.prompts[image // SIZE].text for image in range(IMAGES)]
    each, by_group = list(range(IMAGES)), [image // SIZE for image in range(IMAGES)]
    assert isinstance(config.timesteps.k_sharing, int)
    block = block_ids(config.timesteps.k_sharing)
    latents = world.rollout(noises("rollout", (), each), texts, SIGMAS)
    at = Stored(latents, SIGMAS, texts, SIZE)
    values = advantages(recorder.rewards, SIZE, config.advantages.clip)
    gradients: dict[str, list[Weights]] = {FAKE: [], SURROGATE: [], GENERATOR: []}
    losses: dict[str, list[float]] = {}

    def accumulate(role: str, section: Any, answer: Answer) -> None:
        """Keep losses and gradient; the second gradient leads to the only optimizer step of the role."""
        for name, value in answer.losses.items():
            losses.setdefault(name, []).append(value)
        gradients[role].append(answer.gradient)
        if len(gradients[role]) == 2:
            first, second = gradients[role]
            mean = {name: (first[name] + second[name]) / 2 for name in first}
            o = config.optimizer
            adam = NaiveAdamW(section.learning_rate, section.beta1, o.beta2, o.epsilon, o.weight_decay, o.max_grad_norm)
            world.loras[role] = adam.step(world.loras[role], mean, 1.0)

    for step in range(2):
        ks = steps_of(step, block)
        lower = [SIGMAS[k + 1] for k in ks]
        taus = levels("tau", (step, 0), block, lower)
        eps = noises("fake", (step, 0), each)
        accumulate(FAKE, config.fake, world.fake(s, at, ks, taus, eps, False))

        bs = boundaries(step, block)
        above = [max(SIGMAS[k + 1], config.surrogate.tau_min) for k in bs]
        taus_surrogate = levels("tau-surrogate", (step, 0), block, above)
        eps = noises("surrogate", (step, 0), by_group)
        accumulate(SURROGATE, config.surrogate, world.surrogate(s, at, values, bs, taus_surrogate, eps))

        above = [max(low, config.generator.tau_min) for low in lower]
        taus_reward = levels("tau-reward", (step,), block, above)
        eps, eps_reward = noises("generator", (step,), each), noises("reward", (step,), by_group)
        accumulate(GENERATOR, config.generator, world.generator(s, at, ks, taus, taus_reward, eps, eps_reward))
    for average, role, decay in ((GENERATOR_EMA, GENERATOR, 1 / 10), (SURROGATE_EMA, SURROGATE, 0.001)):
        former, now = world.loras[average], world.loras[role]
        world.loras[average] = {name: decay * old + (1 - decay) * now[name] for name, old in former.items()}
    return world.loras, {name: sum(parts) / 2 for name, parts in losses.items()}, latents


@pytest.mark.parametrize(
    "preset",
    [
        "ocr",
        "imagereward",
        *(pytest.param(name, marks=pytest.mark.long) for name in ("geneval", "hps", "ocr-regularised")),
    ],
)
def test_an_iteration_of_a_published_preset(preset: str) -> None:
    """Losses to 1e-12, weights after the step to 1e-11."""
    tree = read_preset(preset)
    sections = {name: tree[name] for name in SECTIONS if name in tree}
    sections["batch"] = {"groups": GROUPS, "group_size": SIZE, "micro_batch": 4 * SIZE}
    recorder = Recorder()
    engine = make_engine(sections, reward=brightness, plugin=recorder, seed=SEED)
    report = engine.iteration()
    weights, losses, latents = naive_iteration(engine.config, recorder)
    torch.testing.assert_close(recorder.trajectory.latents, latents, rtol=0, atol=1e-12)
    assert {name: report.metrics[name] for name in losses} == pytest.approx(losses, rel=1e-12, abs=1e-12)
    for role, expected in weights.items():
        found = engine.roles.weights(role)
        assert found.keys() == expected.keys()
        for name, weight in found.items():
            torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-11, msg=f"{role} {name}")
    engine.close()
