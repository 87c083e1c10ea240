"""The fake score follows the generator's distribution (algorithm of TDM, arXiv 2503.06674, with a teacher term)."""

from __future__ import annotations

import torch
from torch import Tensor

from tdmr1_core.algorithm.flow import euler_step, euler_velocity, predict_clean, renoise
from tdmr1_core.algorithm.objectives import fake_score_loss, fake_target
from tdmr1_core.models.roles import FAKE, GENERATOR, TEACHER, Roles
from tdmr1_core.records import Trajectory
from tdmr1_core.stages.draws import latents_at, noise_for
from tdmr1_core.stages.micro_batches import MicroBatches, Size
from tdmr1_core.stages.trained_role import TrainedRole


class FakeScoreStage:
    """Updates the fake score on re-noised points of the generator's trajectories."""

    def __init__(self, roles: Roles, role: TrainedRole, *, teacher_weight: float, micro_batch: Size, seed: int) -> None:
        self.roles = roles
        self.role = role
        self._teacher_weight = teacher_weight
        self.micro_batches = MicroBatches(micro_batch)
        self._seed = seed

    def accumulate(
        self,
        trajectory: Trajectory,
        counters: tuple[int, int],
        step_index: Tensor,
        tau: Tensor,
        fresh: bool,
        scale: float,
    ) -> float:
        """Add `scale` times the gradient of the mean loss over all images; returns that mean loss.

        `step_index` and `tau` are (N,); `fresh` says that the generator has not moved since the rollout, so that its
        velocity is read off the stored latents.
        """
        images, total = trajectory.groups.images, 0.0

        def learn(rows: Tensor) -> None:
            nonlocal total
            noise = noise_for(self._seed, "fake", trajectory.groups, counters, rows, "sample", trajectory.latents)
            loss = self.losses(trajectory, rows, step_index, tau[rows], noise, fresh).sum() / images
            self.role.accumulate(loss * scale)
            total += self.role.record_loss(loss, trajectory.groups, rows)

        self.micro_batches.each(images, learn)
        return total

    def losses(
        self, trajectory: Trajectory, rows: Tensor, step_index: Tensor, tau: Tensor, noise: Tensor, fresh: bool
    ) -> Tensor:
        """The loss of each of the images `rows`: (B,), differentiable in the fake score alone."""
        device = self.roles.backbone.device
        sigmas = trajectory.sigmas.to(device)
        sigma, sigma_next = sigmas[step_index[rows]], sigmas[step_index[rows] + 1]
        tau, noise = tau.to(device), noise.to(device)
        conditioning = trajectory.conditioning.select(rows // trajectory.groups.group_size)
        start = latents_at(trajectory, step_index, rows, device)
        with torch.no_grad():
            if fresh:
                stored = latents_at(trajectory, step_index + 1, rows, device)
                velocity = euler_velocity(start, stored, sigma, sigma_next)
            else:
                with self.roles.acting(GENERATOR) as backbone:
                    velocity = backbone.velocity(start, sigma, conditioning)
            clean = predict_clean(start, velocity, sigma)
            renoised = renoise(euler_step(start, velocity, sigma, sigma_next), sigma_next, tau, noise)
            with self.roles.acting(TEACHER) as backbone:
                teacher = backbone.velocity(renoised, tau, conditioning)
        with self.roles.acting(FAKE) as backbone:
            fake = backbone.velocity(renoised, tau, conditioning)
        return fake_score_loss(fake, fake_target(renoised, clean, tau), teacher, self._teacher_weight)
