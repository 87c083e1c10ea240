"""The losses of TDM-R1 (arXiv 2603.07700): fake score, surrogate reward, generator.

Velocities, latents and directions have shape (B, C, H, W). Losses, advantages and weights have shape (B,): one value
per sample, so that callers can sum them over micro-batches. Targets and weights must carry no gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tdmr1_core.algorithm.flow import expand


def sample_mse(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference per sample, (B,)."""
    return (prediction - target).square().flatten(1).mean(1)


def fake_target(renoised: Tensor, clean: Tensor, tau: Tensor) -> Tensor:
    """The velocity from x_tau to the generator's x_0: (x_tau - x_0) / tau, (B, C, H, W)."""
    return (renoised - clean) / expand(tau, renoised)


def fake_score_loss(fake: Tensor, target: Tensor, teacher: Tensor | None, teacher_weight: float) -> Tensor:
    """||target - v_fake||^2 + weight ||v_teacher - v_fake||^2 per sample, (B,). The paper's weight is 0.02.

    Without `teacher`, the second term is left out.
    """
    loss = sample_mse(fake, target)
    return loss if teacher is None else loss + teacher_weight * sample_mse(fake, teacher)


def implicit_reward(loss: Tensor, reference_loss: Tensor, beta: float) -> Tensor:
    """r = beta (l^ref - l) per sample, (B,): beta log p_phi / p_ref up to a constant of the prompt (Eq. 7-9)."""
    return beta * (reference_loss - loss)


def preference_weights(
    advantages: Tensor, loss: Tensor, reference_loss: Tensor, beta: float, group_size: int
) -> Tensor:
    """w_g = sigmoid(sum_i A_i beta (l_i - l_i^ref) / G), equal for all images of a group (Eq. 7-9).

    The tensors (N,) hold complete groups of `group_size` images. The result (N,) carries no gradient.
    """
    margin = (advantages * beta * (loss - reference_loss)).view(-1, group_size).sum(1) / group_size
    return margin.sigmoid().repeat_interleave(group_size).detach()


@dataclass(frozen=True)
class Stabilisers:
    """Settings that keep the surrogate close to its reference. None (thresholds) or 0 (penalty) disables one."""

    trust_region: float | None
    drift_threshold: float | None
    reference_penalty: float


@dataclass(frozen=True)
class PreferenceLoss:
    """The loss of the surrogate and statistics without gradient, each per sample (B,)."""

    loss: Tensor
    """The loss to differentiate."""
    clipped: Tensor
    """Bool: masked by the trust region."""
    drifted: Tensor
    """Bool: masked by the drift threshold."""
    drift: Tensor
    """Mean ||v - v_ref||^2."""


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
    """The loss of the surrogate per sample: time_weight (w_g A_i l_i + penalty ||v - v_ref||^2) (Eq. 7-9).

    l_i = ||v - target||^2 is a mean over elements, `reference` is v_ref (B, C, H, W), and w_g A_i l_i is the preference
    term. `old_loss` (B,) is the loss of the surrogate's EMA; only the trust region needs it.
    Trust region: with ratio = exp(l_old - l), the preference term of a sample is 0 if A > 0 and ratio > 1 + clip, or if
    A <= 0 and ratio < 1 - clip.
    Drift: where mean ||v - v_ref||^2 of a sample exceeds the threshold, its preference term is 0 if its loss is already
    on the far side of the reference's loss (lower for A > 0, higher for A <= 0).
    """
    loss = sample_mse(velocity, target)  # (B,)
    drift = sample_mse(velocity, reference)  # (B,)
    preferred = advantages > 0  # (B,)
    with torch.no_grad():
        clipped = torch.zeros_like(preferred)
        if stabilisers.trust_region is not None and old_loss is not None:
            ratio = (old_loss - loss).exp()
            high, low = 1 + stabilisers.trust_region, 1 - stabilisers.trust_region
            clipped = torch.where(preferred, ratio > high, ratio < low)
        drifted = torch.zeros_like(preferred)
        if stabilisers.drift_threshold is not None:
            improvement = sample_mse(reference, target) - loss
            beyond_reference = torch.where(preferred, improvement > 0, improvement < 0)
            drifted = (drift > stabilisers.drift_threshold) & beyond_reference
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
    """A loss (B,) whose gradient moves the generator's x_0 `clean` along `direction` d, divided by `normaliser` w (B,).

    squared: mean ||sg(x_0 + d) - x_0||^2 / w. huber: mean(sqrt(e^2 + c^2) - c) / w with e = x_0 - sg(x_0 + d).
    """
    error = clean - (clean + direction).detach()  # (B, C, H, W)
    per_element = error.square() if kind == "squared" else (error.square() + huber_c**2).sqrt() - huber_c
    return per_element.flatten(1).mean(1) / normaliser


def cfg_loss(
    clean: Tensor,
    direction: Tensor,
    normaliser: Tensor,
    *,
    kind: Literal["squared", "huber"],
    huber_c: float,
    guidance_scale: float,
) -> Tensor:
    """L_cfg (B,) of a step k < trunc_steps: the loss along `direction` = x_0 guided - x_0 conditional of the teacher.

    The gradient of the Huber loss is nearly independent of the length of `direction`, so this loss is multiplied by
    guidance_scale - 1, the factor that `direction` contains.
    """
    loss = direction_loss(clean, direction, normaliser, kind=kind, huber_c=huber_c)
    return loss * (guidance_scale - 1) if kind == "huber" else loss


def joint_huber_loss(clean: Tensor, d_kl: Tensor, d_cfg: Tensor, normaliser: Tensor, huber_c: float) -> Tensor:
    """L_cfg + L_kl (B,) of a step k >= trunc_steps with the Huber loss: both errors are under one root.

    mean(sqrt(e_cfg^2 + e_kl^2 + c^2) - c) / w with e = x_0 - sg(x_0 + d), without the factor guidance_scale - 1 of
    `cfg_loss` (Eq. 11, in the form of the authors' trainer). `clean` and the directions d are (B, C, H, W),
    `normaliser` w is (B,).
    """
    e_kl, e_cfg = (clean - (clean + direction).detach() for direction in (d_kl, d_cfg))  # (B, C, H, W) each
    per_element = (e_cfg.square() + e_kl.square() + huber_c**2).sqrt() - huber_c
    return per_element.flatten(1).mean(1) / normaliser


def direction_normaliser(clean: Tensor, guided: Tensor, floor: float) -> Tensor:
    """w = mean|x_0 - x_0 of the guided prediction| per sample (B,), at least `floor`, without gradient."""
    return (clean - guided).detach().abs().flatten(1).mean(1).clamp_min(floor)


@dataclass(frozen=True)
class GeneratorWeights:
    """Weights of the terms of the generator loss."""

    tdm_weight: float
    """lambda of the paper."""
    reward_scale: float
    """Factor of the reward term; 0 disables it."""
    trunc_steps: int
    """The reward term applies to steps k < trunc_steps."""


def generator_loss(
    kl: Tensor, cfg: Tensor, reward: Tensor, unrewarded: Tensor, step_index: Tensor, weights: GeneratorWeights
) -> Tensor:
    """The generator loss per sample (B,), from its terms and the step index k, all (B,) (Eq. 10-11).

    lambda L_cfg + (1 - lambda) reward_scale L_reward + L_kl for k < trunc_steps, otherwise lambda `unrewarded`.
    `unrewarded` (B,) is L_cfg + L_kl, or `joint_huber_loss`.
    """
    tdm_weight = weights.tdm_weight
    with_reward = tdm_weight * cfg + (1 - tdm_weight) * weights.reward_scale * reward + kl
    return torch.where(step_index < weights.trunc_steps, with_reward, tdm_weight * unrewarded)
