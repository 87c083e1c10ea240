"""Rectified flow: noise levels, single steps, re-noising a point of a trajectory, and its velocity.

Notation of TDM-R1 (arXiv 2603.07700): x_sigma = (1 - sigma) x_0 + sigma eps and v = eps - x_0. Latents are
(B, C, H, W) and noise levels (B,) in [0, 1] throughout; a level is spread over the latents by `expand`.
"""

from __future__ import annotations

import torch
from torch import Tensor

TAU_MARGIN = 0.02
"""How far above its lower end, in unshifted time, a re-noising level is drawn at least."""


def expand(level: Tensor, latents: Tensor) -> Tensor:
    """A level (B,) shaped (B, 1, 1, 1) in the latents' dtype, so that it multiplies them."""
    return level.to(latents).view(-1, *[1] * (latents.ndim - 1))


def shift_sigma(u: Tensor, shift: float) -> Tensor:
    """S(u) = s u / (1 + (s - 1) u): unshifted time to noise level, both in [0, 1]."""
    return shift * u / (1 + (shift - 1) * u)


def unshift_sigma(sigma: Tensor, shift: float) -> Tensor:
    """The inverse of `shift_sigma`: sigma / (s - (s - 1) sigma)."""
    return sigma / (shift - (shift - 1) * sigma)


def sigma_schedule(steps: int, shift: float) -> Tensor:
    """The K + 1 noise levels of a K-step schedule, float64 from 1 down to 0; K = 4, s = 3: 1, 0.9, 0.75, 0.5, 0."""
    return shift_sigma(torch.linspace(1, 0, steps + 1, dtype=torch.float64), shift)


def predict_clean(latents: Tensor, velocity: Tensor, sigma: Tensor) -> Tensor:
    """x_0 = x_sigma - sigma v."""
    return latents - expand(sigma, latents) * velocity


def predict_noise(latents: Tensor, velocity: Tensor, sigma: Tensor) -> Tensor:
    """eps = x_sigma + (1 - sigma) v."""
    return latents + expand(1 - sigma, latents) * velocity


def euler_step(latents: Tensor, velocity: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """x_{k+1} = x_k - (sigma_k - sigma_{k+1}) v: one step of the deterministic ODE."""
    return latents - expand(sigma - sigma_next, latents) * velocity


def euler_velocity(latents: Tensor, latents_next: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """The velocity that an Euler step used, from its two ends: (x_k - x_{k+1}) / (sigma_k - sigma_{k+1})."""
    return (latents - latents_next) / expand(sigma - sigma_next, latents)


def stochastic_step(
    latents: Tensor, velocity: Tensor, sigma: Tensor, sigma_next: Tensor, noise: Tensor, eta: float
) -> Tensor:
    """A step with the same marginals that replaces a share of the noise by fresh noise, for the paper's ablation.

    x_{k+1} = (1 - sigma') x_0 + sigma' (sqrt(1 - eta^2) eps_predicted + eta eps_fresh), with eta in [0, 1];
    eta = 0 is the Euler step.
    """
    clean = predict_clean(latents, velocity, sigma)
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
    """One step of DPM-Solver++(2M) in the flow's noise levels (Lu et al., arXiv 2211.01095, algorithm 2).

    `clean` is x_0 predicted at this step and `clean_previous` at the one before (None at the first step). The first
    step, one from sigma = 1 and the last (to sigma = 0) are of first order, where the half-log-SNR is infinite.
    """
    ratio = expand(sigma_next / sigma, latents)
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
    return torch.log((1 - sigma) / sigma)


def renoise_coefficients(sigma_from: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
    """alpha, beta of x_tau = alpha x' + beta eps, from level sigma' < 1 up to tau >= sigma' (TDM, arXiv 2503.06674)."""
    alpha = (1 - tau) / (1 - sigma_from)
    beta = (tau.square() - (sigma_from * alpha).square()).clamp_min(0).sqrt()
    return alpha, beta


def renoise(latents: Tensor, sigma_from: Tensor, tau: Tensor, noise: Tensor) -> Tensor:
    """A latent at level sigma' brought up to level tau with fresh noise, along the rectified flow's marginals."""
    alpha, beta = renoise_coefficients(sigma_from, tau)
    return expand(alpha, latents) * latents + expand(beta, latents) * noise


def renoise_velocity(latents: Tensor, sigma_from: Tensor, tau: Tensor, noise: Tensor) -> Tensor:
    """d x_tau / d tau of the path of `renoise`: the surrogate's regression target (Eq. 7-9).

    = -x' / (1 - sigma') + (eps / beta) (tau + sigma'^2 alpha / (1 - sigma')); at sigma' = 0 it is eps - x'.
    """
    alpha, beta = renoise_coefficients(sigma_from, tau)
    growth = (tau + sigma_from.square() * alpha / (1 - sigma_from)) / beta
    return expand(growth, latents) * noise - latents / expand(1 - sigma_from, latents)


def draw_tau(uniform: Tensor, lower: Tensor, shift: float) -> Tensor:
    """A level tau = S(u), u ~ U[S^-1(lower) + 0.02, 1], from uniform numbers in [0, 1) and the lower levels."""
    start = (unshift_sigma(lower, shift) + TAU_MARGIN).clamp(max=1)
    return shift_sigma(start + uniform * (1 - start), shift)
