"""Trains the surrogate reward on the preferences within each group (Eq. 7-9)."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from tdmr1_core.algorithm.flow import renoise, renoise_velocity
from tdmr1_core.algorithm.objectives import (
    PreferenceLoss,
    Stabilisers,
    preference_loss,
    preference_weights,
    sample_mse,
)
from tdmr1_core.models.roles import SURROGATE, SURROGATE_EMA, Roles
from tdmr1_core.records import Conditioning, Trajectory
from tdmr1_core.stages.draws import latents_at, noise_for
from tdmr1_core.stages.micro_batches import MicroBatches
from tdmr1_core.stages.trained_role import TrainedRole


@dataclass(frozen=True)
class _RenoisedBatch:
    """A micro-batch re-noised to noise level tau."""

    latents: Tensor  # (B, C, H, W)
    target: Tensor  # (B, C, H, W), the velocity of the re-noising path
    tau: Tensor  # (B,)
    conditioning: Conditioning


@dataclass(eq=False)
class SurrogateStage:
    """Accumulates the gradient of the surrogate, at re-noised stored latents. Images of a group share their noise."""

    roles: Roles
    role: TrainedRole
    _: KW_ONLY
    reference_role: str
    """The role of p_ref."""
    beta_dpo: float
    stabilisers: Stabilisers
    time_weight: bool
    micro_batches: MicroBatches
    seed: int

    def accumulate(
        self,
        trajectory: Trajectory,
        advantages: Tensor,
        counters: tuple[int, int],
        boundary: Tensor,
        tau: Tensor,
        scale: float,
    ) -> dict[str, float]:
        """Add `scale` times the gradient of the mean loss over all images. Returns means by metric name.

        `advantages`, `boundary` and `tau` have shape (N,). The group weight needs the losses of a whole group, so
        micro-batches smaller than a group cost an additional pass without gradient.
        """
        images, group_size = trajectory.groups.images, trajectory.groups.group_size
        weights: Tensor | None = None
        means = {"loss/preference": 0.0, "surrogate/clipped": 0.0, "surrogate/drifted": 0.0, "surrogate/drift": 0.0}

        def accumulate_rows(rows: Tensor) -> None:
            nonlocal weights
            if weights is None and len(rows) % group_size:
                weights = self._weights(trajectory, advantages, counters, boundary, tau)
            batch = self._renoise(trajectory, rows, counters, boundary, tau)
            result = self.losses(
                batch, advantages[rows], boundary[rows], trajectory, None if weights is None else weights[rows]
            )
            loss = result.loss.sum() / images
            self.role.accumulate(loss * scale)
            means["loss/preference"] += self.role.record_loss(loss, trajectory.groups, rows)
            means["surrogate/clipped"] += result.clipped.sum().item() / images
            means["surrogate/drifted"] += result.drifted.sum().item() / images
            means["surrogate/drift"] += result.drift.sum().item() / images

        self.micro_batches.each(images, accumulate_rows, multiple=group_size)
        return means

    def losses(
        self,
        batch: _RenoisedBatch,
        advantages: Tensor,
        boundary: Tensor,
        trajectory: Trajectory,
        weights: Tensor | None,
    ) -> PreferenceLoss:
        """Loss and statistics per image (B,), differentiable with respect to the surrogate only.

        `advantages` and `boundary` are (B,). `weights` (B,) are the group weights. With None they are computed from
        this batch, which must then hold whole groups.
        """
        with torch.no_grad():
            with self.roles.acting(self.reference_role) as backbone:
                reference = backbone.velocity(batch.latents, batch.tau, batch.conditioning)  # (B, C, H, W)
            old_loss = self._old_loss(batch, reference)
        with self.roles.acting(SURROGATE) as backbone:
            velocity = backbone.velocity(batch.latents, batch.tau, batch.conditioning)  # (B, C, H, W)
        advantages = advantages.to(velocity)
        if weights is None:
            loss, reference_loss = sample_mse(velocity, batch.target), sample_mse(reference, batch.target)
            group_size = trajectory.groups.group_size
            weights = preference_weights(advantages, loss, reference_loss, self.beta_dpo, group_size)
        fraction = (boundary.to(velocity) + 1) / trajectory.steps  # (k + 1) / K, (B,)
        time_weight = fraction if self.time_weight else torch.ones_like(fraction)
        return preference_loss(
            velocity, batch.target, reference, old_loss, advantages, weights, time_weight, self.stabilisers
        )

    def _old_loss(self, batch: _RenoisedBatch, reference: Tensor) -> Tensor | None:
        """The loss of the surrogate's EMA per image (B,); None without a trust region."""
        if self.stabilisers.trust_region is None:
            return None
        if self.reference_role == SURROGATE_EMA:
            return sample_mse(reference, batch.target)
        with self.roles.acting(SURROGATE_EMA) as backbone:
            return sample_mse(backbone.velocity(batch.latents, batch.tau, batch.conditioning), batch.target)

    @torch.no_grad()
    def _weights(
        self,
        trajectory: Trajectory,
        advantages: Tensor,
        counters: tuple[int, int],
        boundary: Tensor,
        tau: Tensor,
    ) -> Tensor:
        """The group weight w_g of every image, (N,), without gradient, for micro-batches smaller than a group."""
        losses: list[Tensor] = []
        reference_losses: list[Tensor] = []

        def evaluate_rows(rows: Tensor) -> None:
            batch = self._renoise(trajectory, rows, counters, boundary, tau)
            found = []
            for role in (SURROGATE, self.reference_role):
                with self.roles.acting(role) as backbone:
                    velocity = backbone.velocity(batch.latents, batch.tau, batch.conditioning)
                found.append(sample_mse(velocity, batch.target))
            losses.append(found[0])
            reference_losses.append(found[1])

        self.micro_batches.each(trajectory.groups.images, evaluate_rows)
        loss, reference_loss = torch.cat(losses), torch.cat(reference_losses)
        group_size = trajectory.groups.group_size
        return preference_weights(advantages.to(loss), loss, reference_loss, self.beta_dpo, group_size)

    def _renoise(
        self, trajectory: Trajectory, rows: Tensor, counters: tuple[int, int], boundary: Tensor, tau: Tensor
    ) -> _RenoisedBatch:
        """Re-noise the latents after the boundary step of the images `rows` (B,) to their levels `tau` (N,)."""
        device = self.roles.backbone.device
        level = tau[rows].to(device)
        sigma = trajectory.sigmas.to(device)[boundary[rows] + 1]  # (B,)
        point = latents_at(trajectory, boundary + 1, rows, device)  # (B, C, H, W)
        noise = noise_for(self.seed, "surrogate", trajectory.groups, counters, rows, "group", point)
        return _RenoisedBatch(
            latents=renoise(point, sigma, level, noise),
            target=renoise_velocity(point, sigma, level, noise),
            tau=level,
            conditioning=trajectory.conditioning_for(rows),
        )
