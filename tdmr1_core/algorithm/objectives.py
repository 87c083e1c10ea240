"""The three losses of TDM-R1 (arXiv 2603.07700): fake score, surrogate reward, generator.

Velocities, latents and directions are (B, C, H, W); losses, advantages and weights are (B,), one a sample, so that a
caller can sum them over any micro-batches. Whatever a function takes as a target or a weight carries no gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tdmr1_core.algorithm.flow import expand


def sample_mse(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference of each sample (B,)."""
    return (prediction - target).square().flatten(1).mean(1)


def fake_target(renoised: Tensor, clean: Tensor, tau: Tensor) -> Tensor:
    """The velocity that leads from x_tau to the generator's x_0: (x_tau - x_0) / tau."""
    return (renoised - clean) / expand(tau, renoised)


def fake_score_loss(fake: Tensor, target: Tensor, teacher: Tensor, teacher_weight: float) -> Tensor:
    """||target - v_fake||^2 + weight ||v_teacher - v_fake||^2 of each sample (B,); published weight 0.02."""
    return sample_mse(fake, target) + teacher_weight * sample_mse(fake, teacher)


def preference_weights(
    advantages: Tensor, loss: Tensor, reference_loss: Tensor, beta: float, group_size: int
) -> Tensor:
    """w_g = sigmoid(sum_i A_i beta (l_i - l_i^ref) / G), the same for all images of a group (Eq. 7-9).

    All arguments (N,) hold whole groups of `group_size`; the result (N,) carries no gradient.
    """
    margin = (advantages * beta * (loss - reference_loss)).view(-1, group_size).sum(1) / group_size
    return margin.sigmoid().repeat_interleave(group_size).detach()


@dataclass(frozen=True)
class Stabilisers:
    """What keeps the surrogate near its reference. Zero, or None for a threshold, switches one off."""

    trust_region: float | None
    drift_threshold: float | None
    reference_penalty: float


@dataclass(frozen=True)
class PreferenceLoss:
    """Per sample (B,): the loss to differentiate, and what the stabilisers saw (no gradient)."""

    loss: Tensor
    clipped: Tensor
    drifted: Tensor
    drift: Tensor


def preference_loss(
    velocity: Tensor,
    target: Tensor,
    reference: Tensor,
    old_loss: Tensor | None,
    advantages: Tensor,
    weights: Tensor,
    time_weight: Tensor,
    stabilisers: Stabilisers,
) -> PreferenceLoss:
    """w_g A_i l_i plus the reference penalty, both times `time_weight`, without the samples that the stabilisers stop.

    `reference` is v_ref, `old_loss` (B,) the loss of the surrogate's EMA (needed for the trust region only).
    Trust region: ratio = exp(l_old - l); A > 0 and ratio > 1 + clip, or A <= 0 and ratio < 1 - clip, give no
    gradient. Drift: where mean ||v - v_ref||^2 of a sample passes the threshold, a sample that has already moved past
    the reference in the direction of its advantage gives none.
    """
    loss = sample_mse(velocity, target)
    drift = sample_mse(velocity, reference)
    wanted = advantages > 0
    with torch.no_grad():
        clipped = torch.zeros_like(wanted)
        if stabilisers.trust_region is not None and old_loss is not None:
            ratio = (old_loss - loss).exp()
            high, low = 1 + stabilisers.trust_region, 1 - stabilisers.trust_region
            clipped = torch.where(wanted, ratio > high, ratio < low)
        drifted = torch.zeros_like(wanted)
        if stabilisers.drift_threshold is not None:
            improvement = sample_mse(reference, target) - loss
            past = torch.where(wanted, improvement > 0, improvement < 0)
            drifted = (drift > stabilisers.drift_threshold) & past
        kept = (~(clipped | drifted)).to(loss)
    preference = weights * advantages * loss * kept
    total = time_weight * (preference + stabilisers.reference_penalty * drift)
    return PreferenceLoss(total, clipped, drifted, drift.detach())


def direction_loss(
    clean: Tensor,
    direction: Tensor,
    normaliser: Tensor,
    *,
    kind: Literal["squared", "huber"],
    huber_c: float = 1e-3,
) -> Tensor:
    """A loss (B,) whose gradient moves the generator's x_0 along `direction`, divided by `normaliser` (B,).

    squared: mean ||sg(x_0 + d) - x_0||^2 / w; huber: mean((sqrt(e^2 + c^2) - c) / w) with e the same difference.
    """
    error = clean - (clean + direction).detach()
    per_element = error.square() if kind == "squared" else (error.square() + huber_c**2).sqrt() - huber_c
    return per_element.flatten(1).mean(1) / normaliser


def direction_normaliser(clean: Tensor, guided: Tensor, floor: float) -> Tensor:
    """w = mean|x_0 - x_0 of the guided prediction| of each sample (B,), no gradient, at least `floor`."""
    return (clean - guided).detach().abs().flatten(1).mean(1).clamp_min(floor)


@dataclass(frozen=True)
class GeneratorWeights:
    """How the generator's terms are mixed: lambda of the paper, the scale of the reward, and from which k it ends."""

    tdm_weight: float
    reward_scale: float
    trunc_steps: int


def generator_loss(kl: Tensor, cfg: Tensor, reward: Tensor, step_index: Tensor, weights: GeneratorWeights) -> Tensor:
    """lambda L_cfg + (1 - lambda) L_reward + L_kl for k < trunc_steps, else lambda (L_cfg + L_kl), (B,) (Eq. 10-11)."""
    share = weights.tdm_weight
    with_reward = share * cfg + (1 - share) * weights.reward_scale * reward + kl
    return torch.where(step_index < weights.trunc_steps, with_reward, share * (cfg + kl))
