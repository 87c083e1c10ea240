"""Rectified-flow arithmetic, compared with values computed by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

from tdmr1_core.algorithm.flow import (
    dpm_solver_step,
    draw_tau,
    euler_step,
    euler_velocity,
    expand,
    guide,
    predict_clean,
    predict_noise,
    renoise,
    renoise_coefficients,
    renoise_velocity,
    shift_sigma,
    sigma_schedule,
    stochastic_step,
    unshift_sigma,
)

pytestmark = pytest.mark.unit


def levels(*values: float) -> Tensor:
    """Noise levels, float64 (B,)."""
    return torch.tensor(values, dtype=torch.float64)


def latents(*values: float) -> Tensor:
    """Latents (B, 1, 1, 1), one number each."""
    return levels(*values).view(-1, 1, 1, 1)


def basis(index: int, size: int = 3) -> Tensor:
    """A unit vector (1, 1, 1, size): a linear function of several of them shows its coefficients."""
    return torch.eye(size, dtype=torch.float64)[index].view(1, 1, 1, size)


def assert_equal(found: Tensor, *expected: float, tolerance: float = 1e-12) -> None:
    """Check every number of a tensor, in order."""
    assert found.flatten().tolist() == pytest.approx(list(expected), rel=tolerance, abs=tolerance)


def test_expand_shapes_and_casts() -> None:
    like = torch.zeros(2, 3, 4, 5, dtype=torch.float32)
    spread = expand(levels(0.25, 0.5), like)
    assert spread.shape == (2, 1, 1, 1)
    assert spread.dtype == torch.float32
    assert expand(levels(0.25), torch.zeros(1, 7)).shape == (1, 1)


def test_shift_by_hand() -> None:
    assert_equal(shift_sigma(levels(0, 0.25, 0.5, 0.75, 1), 3), 0, 0.5, 0.75, 0.9, 1)
    assert_equal(shift_sigma(levels(0.5), 5), 5 / 6)
    assert_equal(shift_sigma(levels(0.3), 1), 0.3)
    assert_equal(unshift_sigma(levels(0, 0.5, 0.75, 0.9, 1), 3), 0, 0.25, 0.5, 0.75, 1)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0, 6.3])
def test_unshift_is_the_inverse(shift: float) -> None:
    u = torch.linspace(0, 1, 41, dtype=torch.float64)
    torch.testing.assert_close(unshift_sigma(shift_sigma(u, shift), shift), u, rtol=0, atol=1e-14)
    torch.testing.assert_close(shift_sigma(unshift_sigma(u, shift), shift), u, rtol=0, atol=1e-14)


def test_schedule() -> None:
    assert_equal(sigma_schedule(4, 3), 1, 0.9, 0.75, 0.5, 0)
    assert_equal(sigma_schedule(1, 3), 1, 0)
    assert_equal(sigma_schedule(2, 1), 1, 0.5, 0)
    assert sigma_schedule(4, 3).dtype == torch.float64
    schedule = sigma_schedule(28, 3)
    assert len(schedule) == 29
    assert schedule[0] == 1
    assert schedule[-1] == 0
    assert bool((schedule.diff() < 0).all())


@pytest.mark.parametrize("shift", [1.0, 3.0, 6.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8, 28])
def test_the_levels_of_the_scheduler_of_diffusers(steps: int, shift: float) -> None:
    scheduler = DPMSolverMultistepScheduler(use_flow_sigmas=True, flow_shift=shift, prediction_type="flow_prediction")
    scheduler.set_timesteps(steps)
    found = sigma_schedule(steps, shift, "scheduler")
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.float(), scheduler.sigmas, rtol=1e-7, atol=0)
    assert found[-1] == 0


def test_the_levels_of_the_scheduler_by_hand() -> None:
    # u = 0.999, 0.74925, 0.4995, 0.24975, 0; 3 u / (1 + 2 u).
    expected = 2.997 / 2.998, 2.24775 / 2.4985, 1.4985 / 1.999, 0.74925 / 1.4995, 0
    assert_equal(sigma_schedule(4, 3, "scheduler"), *expected)
    assert [round(level, 5) for level in expected] == [0.99967, 0.89964, 0.74962, 0.49967, 0]


def test_predictions_of_a_known_mixture() -> None:
    # x_0 = 2, eps = 6, sigma = 0.25: x = 0.75 * 2 + 0.25 * 6 = 3 and v = 4; the second: x_0 = -1, eps = 1, sigma = 0.5.
    x, v, sigma = latents(3, 0), latents(4, 2), levels(0.25, 0.5)
    assert_equal(predict_clean(x, v, sigma), 2, -1)
    assert_equal(predict_noise(x, v, sigma), 6, 1)


def test_euler_by_hand_and_back() -> None:
    # 3 - (0.75 - 0.5) 4 = 2;  0 - (0.5 - 0) 2 = -1.
    x, v, sigma, after = latents(3, 0), latents(4, 2), levels(0.75, 0.5), levels(0.5, 0)
    moved = euler_step(x, v, sigma, after)
    assert_equal(moved, 2, -1)
    assert_equal(euler_velocity(x, moved, sigma, after), 4, 2)


def test_stochastic_step_without_noise_is_euler() -> None:
    generator = torch.Generator().manual_seed(0)
    x, v, fresh = torch.randn(3, 2, 2, 4, 4, generator=generator, dtype=torch.float64)
    sigma, after = levels(0.9, 0.6), levels(0.75, 0)
    stepped = stochastic_step(x, v, sigma, after, fresh, 0.0)
    torch.testing.assert_close(stepped, euler_step(x, v, sigma, after), rtol=0, atol=1e-14)


@pytest.mark.parametrize("eta", [0.3, 0.6, 1.0])
def test_stochastic_step_keeps_the_marginal(eta: float) -> None:
    clean, noise, fresh = basis(0), basis(1), basis(2)
    x = 0.2 * clean + 0.8 * noise
    moved = stochastic_step(x, noise - clean, levels(0.8), levels(0.5), fresh, eta).flatten()
    assert moved[0].item() == pytest.approx(0.5)
    assert moved[2].item() == pytest.approx(0.5 * eta)
    assert math.hypot(moved[1], moved[2]) == pytest.approx(0.5)


def test_stochastic_step_by_hand() -> None:
    # x_0 = 2, eps = 6: 0.5 * 2 + 0.5 (0.8 * 6 + 0.6 * 10) = 1 + 5.4.
    assert_equal(stochastic_step(latents(3), latents(4), levels(0.25), levels(0.5), latents(10), 0.6), 6.4)


def test_dpm_first_step_is_euler() -> None:
    # sigma 0.75 -> 0.5, x = 2, x_0 = 4: v = (2 - 4) / 0.75 = -8/3 and 2 + 0.25 * 8/3 = 8/3.
    assert_equal(dpm_solver_step(latents(2), latents(4), None, None, levels(0.75), levels(0.5)), 8 / 3)


def test_dpm_second_order_by_hand() -> None:
    # lambda = -ln 3, 0, ln 3: D = 1.5 * 4 - 0.5 * 2 = 5, x' = 0.5 * 2 + (0.75 - 0.5 * 0.5) * 5 = 3.5.
    even = dpm_solver_step(latents(2), latents(4), latents(2), levels(0.75), levels(0.5), levels(0.25))
    assert_equal(even, 3.5)
    # lambda = -2 ln 3, 0, ln 3: h / 2 h' = 1/4, D = 1.25 * 4 - 0.25 * 2 = 4.5, x' = 1 + 2.25.
    uneven = dpm_solver_step(latents(2), latents(4), latents(2), levels(0.9), levels(0.5), levels(0.25))
    assert_equal(uneven, 3.25)


def test_dpm_ends_are_first_order() -> None:
    # To sigma = 0: x_0 itself. From a step that began at sigma = 1: as if there were no previous prediction.
    assert_equal(dpm_solver_step(latents(2), latents(4), latents(-7), levels(0.75), levels(0.5), levels(0)), 4)
    known = dpm_solver_step(latents(2), latents(4), latents(-7), levels(1), levels(0.75), levels(0.5))
    assert_equal(known, 8 / 3)
    # From pure noise: 0.9 * 2 + 0.1 * 4.
    assert_equal(dpm_solver_step(latents(2), latents(4), None, None, levels(1), levels(0.9)), 2.2)


def follow(clean_of: Callable[[Tensor, Tensor], Tensor], x: Tensor, sigmas: Tensor, dpm: bool) -> Tensor:
    """Integrate from sigmas[0] to sigmas[-1]."""
    previous = None
    for k in range(len(sigmas) - 1):
        now, after = sigmas[k : k + 1], sigmas[k + 1 : k + 2]
        clean = clean_of(x, now)
        if dpm:
            x = dpm_solver_step(x, clean, previous, sigmas[k - 1 : k] if k else None, now, after)
        else:
            x = euler_step(x, (x - clean) / expand(now, x), now, after)
        previous = clean
    return x


@pytest.mark.parametrize("dpm", [True, False])
def test_solvers_reach_a_constant_image_exactly(dpm: bool) -> None:
    target, noise = latents(3), latents(-2)
    sigmas = sigma_schedule(5, 3)
    middle = follow(lambda x, sigma: target, noise, sigmas[:4], dpm)
    sigma = sigmas[3].item()
    assert_equal(middle, (1 - sigma) * 3 + sigma * -2)
    assert_equal(follow(lambda x, sigma: target, noise, sigmas, dpm), 3)


def test_dpm_converges_with_second_order() -> None:
    """For data from N(0, 1/4), x_0(x) is linear, and the ODE keeps x proportional to the marginal's deviation."""

    def deviation(sigma: float) -> float:
        return math.sqrt((1 - sigma) ** 2 / 4 + sigma**2)

    def clean_of(x: Tensor, sigma: Tensor) -> Tensor:
        s = sigma.item()
        return (1 - s) * x / 4 / deviation(s) ** 2

    exact = deviation(0.1) / deviation(0.95)
    errors = {}
    for dpm in (True, False):
        for steps in (10, 20, 40, 80):
            sigmas = torch.linspace(0.95, 0.1, steps + 1, dtype=torch.float64)
            errors[dpm, steps] = abs(follow(clean_of, latents(1), sigmas, dpm).item() - exact)
    for steps in (10, 20, 40):
        assert errors[True, steps] < errors[False, steps] / 2
    assert errors[True, 40] / errors[True, 80] == pytest.approx(4, abs=0.6)
    assert errors[False, 40] / errors[False, 80] == pytest.approx(2, abs=0.3)


def test_renoise_coefficients_by_hand() -> None:
    # sigma' = 0.5, tau = 0.7: alpha = 0.3 / 0.5, beta = sqrt(0.49 - 0.09).  sigma' = 0: alpha = 1 - tau, beta = tau.
    alpha, beta = renoise_coefficients(levels(0.5, 0, 0.75, 0.5), levels(0.7, 0.4, 1, 0.5))
    assert_equal(alpha, 0.6, 0.6, 0, 1)
    assert_equal(beta, math.sqrt(0.4), 0.4, 1, 0)


def test_renoise_by_hand() -> None:
    noised = renoise(latents(10, 10), levels(0.5, 0), levels(0.7, 0.4), latents(2, 2))
    assert_equal(noised, 6 + 2 * math.sqrt(0.4), 6.8)


@pytest.mark.parametrize(("low", "tau"), [(0.0, 0.3), (0.5, 0.52), (0.5, 0.8), (0.75, 0.9), (0.9, 0.99), (0.9, 1.0)])
def test_renoise_follows_the_marginals(low: float, tau: float) -> None:
    """(1 - s) x_0 + s e_1 becomes (1 - tau) x_0 + noise of deviation tau."""
    point = (1 - low) * basis(0) + low * basis(1)
    clean, first, fresh = renoise(point, levels(low), levels(tau), basis(2)).flatten().tolist()
    assert clean == pytest.approx(1 - tau)
    assert math.hypot(first, fresh) == pytest.approx(tau)


def test_renoise_statistically() -> None:
    generator = torch.Generator().manual_seed(3)
    first, fresh = torch.randn(2, 1, 1, 1, 200_000, generator=generator, dtype=torch.float64)
    noised = renoise(0.5 * 3 + 0.5 * first, levels(0.5), levels(0.8), fresh)
    assert noised.mean().item() == pytest.approx(0.2 * 3, abs=0.01)
    assert noised.std().item() == pytest.approx(0.8, abs=0.01)


def test_renoise_velocity_by_hand() -> None:
    # sigma' = 0.5, tau = 0.7: beta' = (0.7 + 0.25 * 0.6 / 0.5) / sqrt(0.4) = 1 / sqrt(0.4); -10 / 0.5 + 2 / sqrt(0.4).
    assert_equal(renoise_velocity(latents(10), levels(0.5), levels(0.7), latents(2)), -20 + 2 / math.sqrt(0.4))
    # From a clean image it is eps - x_0.
    assert_equal(renoise_velocity(latents(10), levels(0), levels(0.4), latents(2)), -8)


def test_renoise_velocity_is_the_derivative() -> None:
    generator = torch.Generator().manual_seed(1)
    x, noise = torch.randn(2, 6, 2, 3, 3, generator=generator, dtype=torch.float64)
    low, tau = levels(0, 0, 0.5, 0.5, 0.75, 0.9), levels(0.05, 0.9, 0.52, 0.99, 0.8, 0.93)
    _, derivative = torch.func.jvp(lambda t: renoise(x, low, t, noise), (tau,), (torch.ones_like(tau),))  # type: ignore[misc]
    torch.testing.assert_close(renoise_velocity(x, low, tau, noise), derivative, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("low", "tau"), [(0.0, 0.3), (0.5, 0.52), (0.75, 0.9), (0.9, 0.99)])
def test_renoise_velocity_equals_the_flow_velocity_on_average(low: float, tau: float) -> None:
    """Its mean given x_0 and x_tau is eps - x_0: coefficient -1 of x_0, and covariance tau with the noise of x_tau."""
    point = (1 - low) * basis(0) + low * basis(1)
    noised = renoise(point, levels(low), levels(tau), basis(2)).flatten()
    velocity = renoise_velocity(point, levels(low), levels(tau), basis(2)).flatten()
    assert velocity[0].item() == pytest.approx(-1)
    assert (noised[1:] * velocity[1:]).sum().item() == pytest.approx(tau)


def test_draw_tau_by_hand() -> None:
    # lower = 0.5: S^-1 = 0.25, start 0.27; u = 0.5: 0.635, S = 1.905 / 2.27. lower = 0: from 0.02, S = 0.06 / 1.04.
    taus = draw_tau(levels(0.5, 0, 0.9), levels(0.5, 0, 0.9), 3)
    # lower = 0.9: S^-1 = 0.75, start 0.77, + 0.9 * 0.23 = 0.977, S = 2.931 / 2.954.
    assert_equal(taus, 1.905 / 2.27, 0.06 / 1.04, 2.931 / 2.954)


@pytest.mark.parametrize("lower", [0.0, 0.3, 0.5, 0.75, 0.9, 0.999])
def test_draw_tau_ranges(lower: float) -> None:
    uniform = torch.linspace(0, 1 - 1e-9, 1001, dtype=torch.float64)
    taus = draw_tau(uniform, torch.full_like(uniform, lower), 3)
    assert bool((taus > lower).all())
    assert bool((taus <= 1).all())
    assert bool((taus.diff() >= 0).all())
    if lower < 0.99:
        assert taus[-1].item() == pytest.approx(1, abs=1e-8)
        unshifted = taus / (3 - 2 * taus)
        assert unshifted[0].item() == pytest.approx(lower / (3 - 2 * lower) + 0.02)
        torch.testing.assert_close(unshifted.diff(), unshifted.diff().mean().expand(1000), rtol=1e-6, atol=1e-9)


def test_guide() -> None:
    # 1 + 2.5 (3 - 1).
    assert_equal(guide(latents(3), latents(1), 2.5), 6)
    assert_equal(guide(latents(3), latents(1), 1.0), 3)
    assert_equal(guide(latents(3), latents(1), 0.0), 1)
