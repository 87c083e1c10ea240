"""Trains the fake score on samples of the generator (TDM, arXiv 2503.06674, with an additional teacher term)."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from tdmr1_core.algorithm.flow import euler_step, euler_velocity, predict_clean, renoise
from tdmr1_core.algorithm.objectives import fake_score_loss, fake_target
from tdmr1_core.models.roles import FAKE, GENERATOR, TEACHER, Roles
from tdmr1_core.records import Trajectory
from tdmr1_core.stages.draws import latents_at, noise_for
from tdmr1_core.stages.micro_batches import MicroBatches
from tdmr1_core.stages.trained_role import TrainedRole


@dataclass(eq=False)
class FakeScoreStage:
    """Accumulates the gradient of the fake score, at re-noised points of the generator's trajectories."""

    roles: Roles
    role: TrainedRole
    _: KW_ONLY
    teacher_weight: float
    """The weight of the teacher term. With 0, the teacher is not evaluated."""
    micro_batches: MicroBatches
    seed: int

    def accumulate(
        self,
        trajectory: Trajectory,
        counters: tuple[int, int],
        step_index: Tensor,
        tau: Tensor,
        use_stored_velocity: bool,
        scale: float,
    ) -> float:
        """Add `scale` times the gradient of the mean loss over all images. Returns the mean loss.

        `step_index` and `tau` have shape (N,). With `use_stored_velocity` the velocity of the generator is computed
        from the stored latents instead of by a forward pass; the generator must not have changed since the rollout.
        """
        images, total = trajectory.groups.images, 0.0

        def accumulate_rows(rows: Tensor) -> None:
            nonlocal total
            noise = noise_for(self.seed, "fake", trajectory.groups, counters, rows, "sample", trajectory.latents)
            loss = self.losses(trajectory, rows, step_index, tau[rows], noise, use_stored_velocity).sum() / images
            self.role.accumulate(loss * scale)
            total += self.role.record_loss(loss, trajectory.groups, rows)

        self.micro_batches.each(images, accumulate_rows)
        return total

    def losses(
        self,
        trajectory: Trajectory,
        rows: Tensor,
        step_index: Tensor,
        tau: Tensor,
        noise: Tensor,
        use_stored_velocity: bool,
    ) -> Tensor:
        """The loss of each image of `rows`, (B,), differentiable with respect to the fake score only.

        `step_index` is (N,); `rows` and `tau` are (B,); `noise` is (B, C, H, W).
        """
        device = self.roles.backbone.device
        sigmas = trajectory.sigmas.to(device)
        sigma, sigma_next = sigmas[step_index[rows]], sigmas[step_index[rows] + 1]  # (B,) each
        tau, noise = tau.to(device), noise.to(device)
        conditioning = trajectory.conditioning_for(rows)
        start = latents_at(trajectory, step_index, rows, device)  # (B, C, H, W)
        with torch.no_grad():
            if use_stored_velocity:
                stored = latents_at(trajectory, step_index + 1, rows, device)
                velocity = euler_velocity(start, stored, sigma, sigma_next)
            else:
                with self.roles.acting(GENERATOR) as backbone:
                    velocity = backbone.velocity(start, sigma, conditioning)
            clean = predict_clean(start, velocity, sigma)
            renoised = renoise(euler_step(start, velocity, sigma, sigma_next), sigma_next, tau, noise)
            teacher: Tensor | None = None
            if self.teacher_weight > 0:
                with self.roles.acting(TEACHER) as backbone:
                    teacher = backbone.velocity(renoised, tau, conditioning)
        with self.roles.acting(FAKE) as backbone:
            fake = backbone.velocity(renoised, tau, conditioning)
        return fake_score_loss(fake, fake_target(renoised, clean, tau), teacher, self.teacher_weight)
