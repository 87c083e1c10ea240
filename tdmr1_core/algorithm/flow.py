"""Rectified flow: noise schedules, solver steps, classifier-free guidance, and re-noising.

Notation of TDM-R1 (arXiv 2603.07700): x_sigma = (1 - sigma) x_0 + sigma eps, v = eps - x_0. Latents and velocities have
shape (B, C, H, W); noise levels have shape (B,) and lie in [0, 1].
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Levels = Literal["euler", "scheduler"]
"""euler: from sigma = 1. scheduler: those of DPMSolverMultistepScheduler of diffusers, which start below 1."""
TRAINING_STEPS = 1000
"""num_train_timesteps of the scheduler: its unshifted times start at 1 - 1 / TRAINING_STEPS."""
TAU_MARGIN = 0.02
"""`draw_tau` draws levels at least this far above their lower bound, in unshifted time."""


def expand(level: Tensor, latents: Tensor) -> Tensor:
    """A noise level (B,) as (B, 1, 1, 1) in the dtype and on the device of the latents, for broadcasting."""
    return level.to(latents).view(-1, *[1] * (latents.ndim - 1))


def shift_sigma(u: Tensor, shift: float) -> Tensor:
    """Noise level S(u) = s u / (1 + (s - 1) u) of an unshifted time u, both in [0, 1]."""
    return shift * u / (1 + (shift - 1) * u)


def unshift_sigma(sigma: Tensor, shift: float) -> Tensor:
    """The inverse of `shift_sigma`: sigma / (s - (s - 1) sigma)."""
    return sigma / (shift - (shift - 1) * sigma)


def sigma_schedule(steps: int, shift: float, levels: Levels = "euler") -> Tensor:
    """Noise levels of a K-step schedule, float64 (K+1,), decreasing to 0.

    euler: S(1 - k / K). K = 4 and s = 3 give 1, 0.9, 0.75, 0.5, 0.
    scheduler: S(0.999 (1 - k / K)), computed as in diffusers' DPMSolverMultistepScheduler with use_flow_sigmas and
    flow_shift = s, which the authors' trainer uses. K = 4 and s = 3 give 0.99967, 0.89964, 0.74962, 0.49967, 0.
    """
    if levels == "euler":
        return shift_sigma(torch.linspace(1, 0, steps + 1, dtype=torch.float64), shift)
    alphas = torch.linspace(1, 1 / TRAINING_STEPS, steps + 1, dtype=torch.float64)
    return shift_sigma(1 - alphas, shift).flip(0)


def stretch(sigmas: Tensor, terminal: float) -> Tensor:
    """Stretch noise levels (K+1,) that decrease to 0, so that the last one before 0 is `terminal`; K >= 2.

    As stretch_shift_to_terminal of diffusers: 1 - (1 - sigma) (1 - terminal) / (1 - sigma_{K-1}).
    """
    stretched = 1 - (1 - sigmas[:-1]) * ((1 - terminal) / (1 - sigmas[-2]))
    return torch.cat([stretched, sigmas[-1:]])


def predict_clean(latents: Tensor, velocity: Tensor, sigma: Tensor) -> Tensor:
    """x_0 = x_sigma - sigma v."""
    return latents - expand(sigma, latents) * velocity


def predict_noise(latents: Tensor, velocity: Tensor, sigma: Tensor) -> Tensor:
    """eps = x_sigma + (1 - sigma) v."""
    return latents + expand(1 - sigma, latents) * velocity


def euler_step(latents: Tensor, velocity: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """One Euler step of the ODE: x_{k+1} = x_k - (sigma_k - sigma_{k+1}) v."""
    return latents - expand(sigma - sigma_next, latents) * velocity


def euler_velocity(latents: Tensor, latents_next: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """The velocity of an Euler step, recovered from both ends: (x_k - x_{k+1}) / (sigma_k - sigma_{k+1})."""
    return (latents - latents_next) / expand(sigma - sigma_next, latents)


def stochastic_step(
    latents: Tensor, velocity: Tensor, sigma: Tensor, sigma_next: Tensor, noise: Tensor, eta: float
) -> Tensor:
    """A stochastic step with the marginals of the Euler step (ablation of the paper).

    x_{k+1} = (1 - sigma') x_0 + sigma' (sqrt(1 - eta^2) eps_predicted + eta eps_fresh), with eta in [0, 1]. `noise` is
    eps_fresh (B, C, H, W). eta = 0 is the Euler step.
    """
    clean = predict_clean(latents, velocity, sigma)  # (B, C, H, W)
    mixed = (1 - eta**2) ** 0.5 * predict_noise(latents, velocity, sigma) + eta * noise
    return expand(1 - sigma_next, latents) * clean + expand(sigma_next, latents) * mixed


def dpm_solver_step(
    latents: Tensor,
    clean: Tensor,
    clean_previous: Tensor | None,
    sigma_previous: Tensor | None,
    sigma: Tensor,
    sigma_next: Tensor,
) -> Tensor:
    """One step of DPM-Solver++(2M) on the noise levels of the flow (Lu et al., arXiv 2211.01095, algorithm 2).

    `clean` is x_0 predicted at this step. `clean_previous` is x_0 predicted at the previous step, which began at level
    `sigma_previous` (both None at the first step). The step is of first order where the half-log-SNR is infinite: if
    there is no previous step, if the previous step began at sigma = 1, or if this step ends at sigma = 0.
    """
    ratio = expand(sigma_next / sigma, latents)  # (B, 1, 1, 1)
    alpha_next = expand(1 - sigma_next, latents)
    alpha_ratio = expand((1 - sigma) * sigma_next / sigma, latents)
    direction = clean
    if clean_previous is not None and sigma_previous is not None:
        second_order = (sigma_next > 0) & (sigma_previous < 1)
        step = _half_log_snr(sigma_next) - _half_log_snr(sigma)
        step_previous = _half_log_snr(sigma) - _half_log_snr(sigma_previous)
        slope = expand(torch.where(second_order, step / (2 * step_previous), 0), latents)
        direction = (1 + slope) * clean - slope * clean_previous
    return ratio * latents + (alpha_next - alpha_ratio) * direction


def _half_log_snr(sigma: Tensor) -> Tensor:
    """lambda = log((1 - sigma) / sigma), (B,)."""
    return torch.log((1 - sigma) / sigma)


def renoise_coefficients(sigma_from: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and beta (B,) of x_tau = alpha x' + beta eps, from level sigma' < 1 to tau >= sigma' (TDM, 2503.06674)."""
    alpha = (1 - tau) / (1 - sigma_from)
    beta = (tau.square() - (sigma_from * alpha).square()).clamp_min(0).sqrt()
    return alpha, beta


def renoise(latents: Tensor, sigma_from: Tensor, tau: Tensor, noise: Tensor) -> Tensor:
    """Re-noise a latent from level sigma' to level tau: x_tau = alpha x' + beta eps. Keeps the flow's marginals."""
    alpha, beta = renoise_coefficients(sigma_from, tau)
    return expand(alpha, latents) * latents + expand(beta, latents) * noise


def renoise_velocity(latents: Tensor, sigma_from: Tensor, tau: Tensor, noise: Tensor) -> Tensor:
    """d x_tau / d tau along the path of `renoise`: the regression target of the surrogate (Eq. 7-9).

    Equals -x' / (1 - sigma') + (eps / beta) (tau + sigma'^2 alpha / (1 - sigma')). At sigma' = 0 this is eps - x'.
    """
    alpha, beta = renoise_coefficients(sigma_from, tau)  # (B,) each
    growth = (tau + sigma_from.square() * alpha / (1 - sigma_from)) / beta
    return expand(growth, latents) * noise - latents / expand(1 - sigma_from, latents)


def draw_tau(uniform: Tensor, lower: Tensor, shift: float) -> Tensor:
    """Noise levels tau = S(u), (B,), with u ~ U[S^-1(lower) + TAU_MARGIN, 1].

    `uniform` (B,) holds random numbers in [0, 1); `lower` (B,) holds the lower bounds, as noise levels.
    """
    start = (unshift_sigma(lower, shift) + TAU_MARGIN).clamp(max=1)
    return shift_sigma(start + uniform * (1 - start), shift)


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance of velocities or predictions: uncond + scale (cond - uncond), (B, C, H, W)."""
    return unconditional + scale * (conditional - unconditional)
