"""Trains the surrogate reward on the preferences within each group (Eq. 7-9)."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from tdmr1_core.algorithm.flow import predict_clean, renoise, renoise_velocity
from tdmr1_core.algorithm.objectives import (
    PreferenceLoss,
    Stabilisers,
    implicit_reward,
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


@dataclass(frozen=True)
class _WholeGroups:
    """What micro-batches smaller than a group must know beforehand."""

    weights: Tensor  # (N,), the group weight w_g of every image
    reference: Tensor  # (N, C, H, W), the velocity of the reference

    def select(self, places: Tensor, device: torch.device) -> _WholeGroups:
        """Those of some images (B,), on a device."""
        return _WholeGroups(self.weights[places].to(device), self.reference[places].to(device))


@dataclass(frozen=True)
class SurrogateView:
    """What the surrogate says about B images at one boundary, noise level and noise."""

    reward: Tensor
    """The implicit reward, (B,)."""
    direction: Tensor
    """x_0 of the surrogate - x_0 of the reference, both without guidance, (B, C, H, W)."""


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
    only_with_signal: bool
    """Whether groups without a positive or negative advantage are skipped."""
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
        micro-batches smaller than a group cost an additional pass of the surrogate without gradient. A skipped group
        counts as 0 in every mean.
        """
        images, group_size = trajectory.groups.images, trajectory.groups.group_size
        chosen = self._chosen(advantages, group_size)  # (N',)
        if not len(chosen):  # other processes have groups with signal, and gradients must have the same parameters
            chosen, scale = torch.arange(group_size), 0.0
        whole: _WholeGroups | None = None
        means = {"loss/preference": 0.0, "surrogate/clipped": 0.0, "surrogate/drifted": 0.0, "surrogate/drift": 0.0}

        def accumulate_rows(places: Tensor) -> None:
            nonlocal whole
            if whole is None and len(places) % group_size:
                whole = self._evaluate_groups(trajectory, chosen, advantages, counters, boundary, tau)
            rows = chosen[places]
            batch = self._renoise(trajectory, rows, counters, boundary, tau)
            known = None if whole is None else whole.select(places, batch.latents.device)
            result = self.losses(batch, advantages[rows], boundary[rows], trajectory, known)
            loss = result.loss.sum() / images
            self.role.accumulate(loss * scale)
            means["loss/preference"] += self.role.record_loss(loss, trajectory.groups, rows)
            means["surrogate/clipped"] += result.clipped.sum().item() / images
            means["surrogate/drifted"] += result.drifted.sum().item() / images
            means["surrogate/drift"] += result.drift.sum().item() / images

        self.micro_batches.each(len(chosen), accumulate_rows, multiple=group_size)
        return means

    def _chosen(self, advantages: Tensor, group_size: int) -> Tensor:
        """The row numbers (N',) of the images that are evaluated, in whole groups; all of them by default."""
        rows = torch.arange(len(advantages))
        if not self.only_with_signal:
            return rows
        return rows.view(-1, group_size)[advantages.cpu().view(-1, group_size).any(1)].flatten()

    def losses(
        self,
        batch: _RenoisedBatch,
        advantages: Tensor,
        boundary: Tensor,
        trajectory: Trajectory,
        known: _WholeGroups | None,
    ) -> PreferenceLoss:
        """Loss and statistics per image (B,), differentiable with respect to the surrogate only.

        `advantages` and `boundary` are (B,). `known` are the group weights and velocities of the reference of this
        batch. With None they are computed from the batch, which must then hold whole groups.
        """
        with torch.no_grad():
            reference = self._velocity(self.reference_role, batch) if known is None else known.reference
            old_loss = self._old_loss(batch, reference)
        with self.roles.acting(SURROGATE) as backbone:
            velocity = backbone.velocity(batch.latents, batch.tau, batch.conditioning)  # (B, C, H, W)
        advantages = advantages.to(velocity)
        if known is not None:
            weights = known.weights
        else:
            loss, reference_loss = sample_mse(velocity, batch.target), sample_mse(reference, batch.target)
            group_size = trajectory.groups.group_size
            weights = preference_weights(advantages, loss, reference_loss, self.beta_dpo, group_size)
        fraction = (boundary.to(velocity) + 1) / trajectory.steps  # (k + 1) / K, (B,)
        time_weight = fraction if self.time_weight else torch.ones_like(fraction)
        return preference_loss(
            velocity, batch.target, reference, old_loss, advantages, weights, time_weight, self.stabilisers
        )

    @torch.no_grad()
    def view(
        self, trajectory: Trajectory, rows: Tensor, counters: tuple[int, int], boundary: Tensor, tau: Tensor
    ) -> SurrogateView:
        """Implicit reward and direction of the images `rows` (B,), at the draws of an update with these `counters`.

        `boundary` and `tau` have shape (N,). Nothing is trained.
        """
        batch = self._renoise(trajectory, rows, counters, boundary, tau)
        velocity, reference = self._velocity(SURROGATE, batch), self._velocity(self.reference_role, batch)
        loss, reference_loss = sample_mse(velocity, batch.target), sample_mse(reference, batch.target)
        clean, reference_clean = (predict_clean(batch.latents, each, batch.tau) for each in (velocity, reference))
        return SurrogateView(implicit_reward(loss, reference_loss, self.beta_dpo), clean - reference_clean)

    def _old_loss(self, batch: _RenoisedBatch, reference: Tensor) -> Tensor | None:
        """The loss of the surrogate's EMA per image (B,); None without a trust region."""
        if self.stabilisers.trust_region is None:
            return None
        same = self.reference_role == SURROGATE_EMA
        return sample_mse(reference if same else self._velocity(SURROGATE_EMA, batch), batch.target)

    @torch.no_grad()
    def _velocity(self, role: str, batch: _RenoisedBatch) -> Tensor:
        """The velocity of a role, (B, C, H, W), without gradient."""
        with self.roles.acting(role) as backbone:
            return backbone.velocity(batch.latents, batch.tau, batch.conditioning)

    @torch.no_grad()
    def _evaluate_groups(
        self,
        trajectory: Trajectory,
        chosen: Tensor,
        advantages: Tensor,
        counters: tuple[int, int],
        boundary: Tensor,
        tau: Tensor,
    ) -> _WholeGroups:
        """The group weights and reference velocities of the images `chosen` (N',), in micro-batches below a group."""
        losses: list[Tensor] = []
        references: list[Tensor] = []
        reference_losses: list[Tensor] = []

        def evaluate_rows(places: Tensor) -> None:
            batch = self._renoise(trajectory, chosen[places], counters, boundary, tau)
            loss = sample_mse(self._velocity(SURROGATE, batch), batch.target)
            reference = self._velocity(self.reference_role, batch)
            losses.append(loss)
            references.append(reference.to(trajectory.latents.device))
            reference_losses.append(sample_mse(reference, batch.target))

        self.micro_batches.each(len(chosen), evaluate_rows)
        loss, reference_loss = torch.cat(losses), torch.cat(reference_losses)
        signed, group_size = advantages[chosen].to(loss), trajectory.groups.group_size
        weights = preference_weights(signed, loss, reference_loss, self.beta_dpo, group_size)
        return _WholeGroups(weights, torch.cat(references))

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
