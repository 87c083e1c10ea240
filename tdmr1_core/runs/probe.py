"""A test, before a long run, of whether the surrogate learns the reward. It takes about two minutes.

Only the surrogate is trained, on a fixed pool of scored samples. Then images are sampled from fixed noises with the
velocity v_ref + s (v_surrogate - v_ref). If the surrogate learned the reward, the true reward rises with s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from tdmr1_core.algorithm.flow import euler_step
from tdmr1_core.engine import Engine
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.roles import REFERENCE, SURROGATE
from tdmr1_core.records import Conditioning, Groups
from tdmr1_core.runs.evaluation.evaluate import Measure, evaluation_noise, measure
from tdmr1_core.stages.micro_batches import MicroBatches


@dataclass(frozen=True)
class ProbePoint:
    """The true reward of the images sampled at one strength s."""

    strength: float
    reward: Measure


@dataclass(frozen=True)
class ProbeResult:
    """The reward at each strength, and the paired gain of the last strength over the first with its standard error."""

    points: tuple[ProbePoint, ...]
    gain: float
    stderr: float

    @property
    def passed(self) -> bool:
        """Whether the reward rose by more than two standard errors."""
        return self.gain > 2 * self.stderr


def probe(
    engine: Engine,
    *,
    pool: int = 4,
    updates: int = 40,
    strengths: tuple[float, ...] = (0.0, 0.5, 1.0),
    steps: int = 16,
    images: int = 192,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> ProbeResult:
    """Train the surrogate on the scored samples of `pool` iterations, then sample along it from fixed noises.

    `images` images are sampled at each strength with `steps` Euler steps. At strengths far above 1, samples leave the
    distribution that the surrogate was trained on, and the reward falls again. The engine's surrogate is changed.
    Raises Tdmr1Error if the run has no reward.
    """
    if engine.scoring is None or not engine.config.generator.reward_scale:
        raise Tdmr1Error(
            "a probe needs a reward, and generator.reward_scale above 0",
            "use a training run, or set both",
            code="setting-conflict",
            values={"reward_scale": engine.config.generator.reward_scale},
        )
    scored = []
    progress("sampling", 0, pool)
    for number in range(pool):
        trajectory = engine.rollout(engine.next_groups())
        scored.append((trajectory, engine.advantages(engine.score(trajectory))))
        engine.iteration_index += 1
        progress("sampling", number + 1, pool)
    progress("training the surrogate", 0, updates)
    for number in range(updates):
        trajectory, advantages = scored[number % pool]
        engine.update_surrogate(trajectory, advantages, engine.config.timesteps.per_iteration - 1, number)
        progress("training the surrogate", number + 1, updates)
    rewards = []
    progress("sampling along the surrogate", 0, len(strengths))
    for number, strength in enumerate(strengths):
        rewards.append(_sample_along(engine, strength, steps, images))
        progress("sampling along the surrogate", number + 1, len(strengths))
    points = tuple(ProbePoint(s, measure(list(r))) for s, r in zip(strengths, rewards, strict=True))
    gains = measure(list(rewards[-1] - rewards[0]))
    return ProbeResult(points, gains.mean, gains.stderr)


@torch.no_grad()
def _sample_along(engine: Engine, strength: float, steps: int, images: int) -> np.ndarray:
    """True rewards (images,) of samples with velocity v_ref + s (v_surrogate - v_ref); NaN for images not scored."""
    assert engine.scoring is not None
    size = engine.config.batch.group_size
    prompts = [engine.prompts[i % len(engine.prompts)] for i in range(-(-images // size))]
    groups = Groups(engine.iteration_index, tuple(prompts), size)
    backbone = engine.roles.backbone
    shape = backbone.latent_shape(*engine.size)
    # (prompts * size, C, H, W)
    noise = torch.cat([evaluation_noise([p], size, row, shape) for row, p in enumerate(prompts)])
    sigmas, conditioning = backbone.schedule(steps, engine.noise_schedule(steps)), engine.conditioning(prompts)
    decoded: list[np.ndarray] = []

    def sample_rows(rows: Tensor) -> None:
        latents = noise[rows].to(device=backbone.device, dtype=backbone.dtype)
        for sigma, after in pairwise(sigmas):
            velocity = _velocity(engine, latents, sigma.expand(len(rows)), conditioning.select(rows // size), strength)
            latents = euler_step(latents, velocity, sigma.expand(len(rows)), after.expand(len(rows)))
        decoded.append(backbone.decode(latents))

    micro_batches = MicroBatches(engine.config.batch.micro_batch, halves=not engine.is_sharded)
    micro_batches.each(groups.images, sample_rows)
    scores = engine.scoring.score(groups, np.concatenate(decoded))
    return np.where(scores.valid.numpy(), scores.total.numpy(), np.nan)


def _velocity(engine: Engine, latents: Tensor, sigma: Tensor, conditioning: Conditioning, strength: float) -> Tensor:
    sigma = sigma.to(latents.device)
    with engine.roles.acting(REFERENCE) as backbone:
        reference = backbone.velocity(latents, sigma, conditioning)
    if strength == 0:
        return reference
    with engine.roles.acting(SURROGATE) as backbone:
        return reference + strength * (backbone.velocity(latents, sigma, conditioning) - reference)
