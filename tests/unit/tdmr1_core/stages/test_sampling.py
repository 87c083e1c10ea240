"""Sampling, compared with values computed by hand; the inputs of the backbone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from diffusers.schedulers import scheduling_dpmsolver_multistep
from support.naive import PROMPTS, encoded
from support.product import all_conditionings, make_backbone
from torch import Tensor

from tdmr1_core.algorithm.flow import sigma_schedule
from tdmr1_core.models.backbone import velocities
from tdmr1_core.records import Conditioning
from tdmr1_core.stages.sampling import sample

pytestmark = pytest.mark.unit

SIGMAS = sigma_schedule(4, 3)


class Scripted:
    """A model with v = (x - x_0) / sigma for a constant x_0, or a constant v. Records its inputs."""

    def __init__(self, clean: float = 3.0, *, velocity: float | None = None) -> None:
        self.clean, self.fixed = clean, velocity
        self.inputs: list[tuple[list[float], Conditioning, float]] = []

    def velocity(
        self, latents: Tensor, sigma: Tensor, conditioning: Conditioning, guidance_scale: float = 1.0, **_: bool
    ) -> Tensor:
        """Like Backbone.velocity."""
        self.inputs.append((sigma.tolist(), conditioning, guidance_scale))
        if self.fixed is not None:
            return torch.full_like(latents, self.fixed)
        return (latents - self.clean) / sigma.view(-1, 1, 1, 1)


def start(*values: float) -> Tensor:
    """Noise (B, 1, 1, 1)."""
    return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1, 1)


def rows(count: int) -> Conditioning:
    """A conditioning with `count` rows."""
    return Conditioning(torch.zeros(count, 1, 1), torch.zeros(count, 1))


def test_euler_by_hand() -> None:
    # v = 2 at every step: 5, 5 - 0.1 * 2, 5 - 0.25 * 2, 5 - 0.5 * 2, 5 - 2.
    model, conditioning = Scripted(velocity=2.0), rows(2)
    path = sample(model, start(5, 0), conditioning, SIGMAS, guidance_scale=1.5)  # type: ignore[arg-type]
    assert path.shape == (5, 2, 1, 1, 1)
    assert path[:, 0].flatten().tolist() == pytest.approx([5, 4.8, 4.5, 4, 3])
    assert path[:, 1].flatten().tolist() == pytest.approx([0, -0.2, -0.5, -1, -2])
    assert [inputs[0] for inputs in model.inputs] == [pytest.approx([s, s]) for s in (1, 0.9, 0.75, 0.5)]
    assert all(inputs[1] is conditioning and inputs[2] == 1.5 for inputs in model.inputs)


@pytest.mark.parametrize("sampler", ["euler", "dpm-solver++"])
def test_a_constant_image(sampler: str) -> None:
    path = sample(Scripted(3.0), start(-2), rows(1), SIGMAS, sampler=sampler)  # type: ignore[arg-type]
    assert path.flatten().tolist() == pytest.approx([3 * (1 - s) - 2 * s for s in (1, 0.9, 0.75, 0.5, 0)])


def test_dpm_uses_the_previous_prediction() -> None:
    """x_0 = 1, 2, 3, 4 at the four steps."""

    class Moving(Scripted):
        def velocity(
            self, latents: Tensor, sigma: Tensor, conditioning: Conditioning, guidance_scale: float = 1.0, **_: bool
        ) -> Tensor:
            self.clean = len(self.inputs) + 1.0
            return super().velocity(latents, sigma, conditioning, guidance_scale)

    path = sample(Moving(), start(10), rows(1), SIGMAS, sampler="dpm-solver++").flatten().tolist()  # type: ignore[arg-type]
    # First order: 0.9 * 10 + 0.1 * 1 = 9.1, then 9.1 * 5/6 + (0.25 - 0.1 * 5/6) * 2.
    third = 9.1 * 5 / 6 + 2 / 6
    # Second order at 0.75: lambda = -ln 9, -ln 3, 0: slope 1/2, D = 1.5 * 3 - 0.5 * 2 = 3.5; 2/3 x + (1/2 - 1/6) D.
    fourth = third * 2 / 3 + 3.5 / 3
    assert path == pytest.approx([10, 9.1, third, fourth, 4])


class Nonlinear:
    """A model whose velocity is a nonlinear function of latents and noise level."""

    def velocity(
        self, latents: Tensor, sigma: Tensor, conditioning: Conditioning, guidance_scale: float = 1.0, **_: bool
    ) -> Tensor:
        """Like Backbone.velocity."""
        level = sigma.to(latents).view(-1, 1, 1, 1)
        return torch.sin(3 * latents * level) + latents.square() / 4 - torch.exp(-level * latents.mean())


class DoubleTorch:
    """The module `torch`, in which float32 is float64: the scheduler of diffusers rounds samples to torch.float32."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def sample_with_diffusers(noise: Tensor, steps: int, shift: float, sigmas: Tensor | None = None) -> Tensor:
    """The last latent of diffusers' scheduler, set up as in the authors' trainer; on `sigmas` if they are given."""
    scheduler = DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++",
        solver_order=2,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=shift,
    )
    scheduler.set_timesteps(steps)
    scheduler.set_begin_index(0)
    if sigmas is not None:
        scheduler.sigmas = sigmas
    for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas[:-1], strict=True):
        velocity = Nonlinear().velocity(noise, sigma.expand(len(noise)), rows(len(noise)))
        noise = scheduler.step(velocity, timestep, noise).prev_sample
    return noise


@pytest.mark.parametrize("shift", [3.0, 6.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8, 16])
def test_dpm_is_the_scheduler_of_diffusers(steps: int, shift: float, monkeypatch: pytest.MonkeyPatch) -> None:
    sigmas = sigma_schedule(steps, shift, "scheduler")
    noise = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def last(noise: Tensor) -> Tensor:
        return sample(Nonlinear(), noise, rows(2), sigmas, sampler="dpm-solver++")[-1]  # type: ignore[arg-type]

    single = last(noise.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single, sample_with_diffusers(noise.float(), steps, shift), rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(scheduling_dpmsolver_multistep, "torch", DoubleTorch())
    double = sample_with_diffusers(noise, steps, shift, sigmas)
    assert double.dtype == torch.float64
    torch.testing.assert_close(last(noise), double, rtol=0, atol=1e-10)
    # The levels of Euler lead elsewhere.
    euler = sample(Nonlinear(), noise, rows(2), sigma_schedule(steps, shift), sampler="dpm-solver++")[-1]  # type: ignore[arg-type]
    assert (euler - double).abs().max() > 1e-6


def test_the_second_step_is_second_order_on_the_levels_of_the_scheduler() -> None:
    """With Euler's levels the previous step began at sigma = 1, and the prediction at it is not used."""
    noise, second = start(0.7), {}
    for levels in ("scheduler", "euler"):
        sigmas = sigma_schedule(4, 3, levels)  # type: ignore[arg-type]
        path = sample(Nonlinear(), noise, rows(1), sigmas, sampler="dpm-solver++")  # type: ignore[arg-type]
        now, after = sigmas[1:2], sigmas[2:3]
        first_order = path[1] - (now - after) * Nonlinear().velocity(path[1], now, rows(1))
        second[levels] = (path[2] - first_order).abs().item()
    assert second["euler"] < 1e-12
    assert second["scheduler"] > 1e-4


def test_eta_uses_fresh_noise_at_every_step() -> None:
    steps: list[int] = []

    def fresh(step: int) -> Tensor:
        steps.append(step)
        return start(7)

    # All noise is replaced: x = (1 - s) 3 + s 7, at first 0.3 + 6.3.
    path = sample(Scripted(3.0), start(-2), rows(1), SIGMAS, eta=1.0, fresh_noise=fresh)  # type: ignore[arg-type]
    assert steps == [0, 1, 2, 3]
    assert path.flatten().tolist() == pytest.approx([-2, 6.6, 6, 5, 3])


def test_eta_zero_draws_nothing() -> None:
    def fresh(step: int) -> Tensor:
        raise AssertionError(step)

    path = sample(Scripted(3.0), start(-2), rows(1), SIGMAS, eta=0.0, fresh_noise=fresh)  # type: ignore[arg-type]
    assert path[-1].item() == pytest.approx(3)


def test_guidance_uses_the_empty_prompt() -> None:
    backbone = make_backbone()
    conditioning = all_conditionings().select([1, 3])
    latents = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigma = torch.tensor([0.9, 0.3], dtype=torch.float64)
    tokens, pooled = encoded("")
    empty = Conditioning(tokens.expand(2, -1, -1), pooled.expand(2, -1))
    with_prompt, without = backbone.velocity(latents, sigma, conditioning), backbone.velocity(latents, sigma, empty)
    found = backbone.velocity(latents, sigma, conditioning, 2.5)
    torch.testing.assert_close(found, without + 2.5 * (with_prompt - without), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(backbone.velocity(latents, sigma, conditioning, 1.0), with_prompt)
    assert (with_prompt - without).abs().max().item() > 1e-3


def test_several_inputs_in_one_pass() -> None:
    backbone, conditioning = make_backbone(), all_conditionings()
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 2, 4, 4, 4, generator=generator, dtype=torch.float64)
    inputs = [
        (first, torch.tensor([0.9, 0.3], dtype=torch.float64), conditioning.select([1, 2])),
        (second[:1], torch.tensor([0.5], dtype=torch.float64), conditioning.select([0])),
    ]
    found = velocities(backbone, inputs)
    assert [len(velocity) for velocity in found] == [2, 1]
    for velocity, one in zip(found, inputs, strict=True):
        torch.testing.assert_close(velocity, backbone.velocity(*one), rtol=1e-12, atol=1e-12)


def test_schedule_latent_shape_and_decoding() -> None:
    backbone = make_backbone()
    assert backbone.schedule(4).tolist() == pytest.approx([1, 0.9, 0.75, 0.5, 0])
    assert backbone.schedule(2, 1.0).tolist() == pytest.approx([1, 0.5, 0])
    assert backbone.schedule(2, 1.0, "scheduler").tolist() == pytest.approx([0.999, 0.4995, 0])
    assert backbone.latent_shape(8, 12) == (4, 4, 6)
    assert backbone.dtype == torch.float64
    torch.testing.assert_close(backbone.unconditional.pooled[0], encoded(PROMPTS[0])[1])
    # The test VAE decodes latents / 2 + 0.1; 0.3 becomes 0.25 -> (0.25 / 2 + 0.5) * 255 = 159.4, beyond 1 is white.
    latents = torch.tensor([0.3, 9.0, -9.0, 0.0], dtype=torch.float64).view(1, 4, 1, 1)
    image = backbone.decode(latents)
    assert image.shape == (1, 2, 2, 3)
    assert image[0, 0, 0].tolist() == [159, 255, 0]
