"""Following the ODE from noise to a clean latent, for rollouts, evaluation and previews alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from tdmr1_core.algorithm.flow import dpm_solver_step, euler_step, predict_clean, stochastic_step
from tdmr1_core.models.backbone import Backbone
from tdmr1_core.records import Conditioning

Sampler = Literal["euler", "dpm-solver++"]


def sample(
    backbone: Backbone,
    noise: Tensor,
    conditioning: Conditioning,
    sigmas: Tensor,
    *,
    sampler: Sampler = "euler",
    guidance_scale: float = 1.0,
    eta: float = 0.0,
    fresh_noise: Callable[[int], Tensor] | None = None,
) -> Tensor:
    """All latents (K+1, B, C, H, W) of the acting role, from `noise` down `sigmas` (K+1,).

    `eta` > 0 replaces that share of the noise after every step by `fresh_noise(step)`. Levels are rounded to the
    latents' precision before they are subtracted, as diffusers' scheduler does it: the pictures are the same.
    """
    latents = [noise]
    levels = sigmas.to(noise).unsqueeze(1).expand(-1, len(noise))
    clean_before: Tensor | None = None
    for k in range(len(sigmas) - 1):
        now, after = levels[k], levels[k + 1]
        velocity = backbone.velocity(latents[-1], now, conditioning, guidance_scale)
        if sampler == "dpm-solver++":
            clean = predict_clean(latents[-1], velocity, now)
            before = levels[k - 1] if k else None
            latents.append(dpm_solver_step(latents[-1], clean, clean_before, before, now, after))
            clean_before = clean
        elif eta > 0 and fresh_noise is not None:
            latents.append(stochastic_step(latents[-1], velocity, now, after, fresh_noise(k), eta))
        else:
            latents.append(euler_step(latents[-1], velocity, now, after))
    return torch.stack(latents)
