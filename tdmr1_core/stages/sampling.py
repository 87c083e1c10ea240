"""Integrates the ODE from noise to clean latents, for rollouts, evaluations and previews."""

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
    """Sample with the active role from `noise` (B, C, H, W), along `sigmas` (K+1,). Returns every latent.

    The result is (K+1, B, C, H, W). With `eta` > 0 each Euler step is replaced by `stochastic_step`, with the noise
    `fresh_noise(step)` (B, C, H, W). Noise levels are rounded to the dtype of the latents before they are subtracted,
    as in the scheduler of diffusers, so that both produce the same images.
    """
    latents = [noise]
    levels = sigmas.to(noise).unsqueeze(1).expand(-1, len(noise))  # (K+1, B)
    clean_previous: Tensor | None = None
    for k in range(len(sigmas) - 1):
        now, after = levels[k], levels[k + 1]
        velocity = backbone.velocity(latents[-1], now, conditioning, guidance_scale, as_pipeline=True)
        if sampler == "dpm-solver++":
            clean = predict_clean(latents[-1], velocity, now)
            previous = levels[k - 1] if k else None
            latents.append(dpm_solver_step(latents[-1], clean, clean_previous, previous, now, after))
            clean_previous = clean
        elif eta > 0 and fresh_noise is not None:
            latents.append(stochastic_step(latents[-1], velocity, now, after, fresh_noise(k), eta))
        else:
            latents.append(euler_step(latents[-1], velocity, now, after))
    return torch.stack(latents)
