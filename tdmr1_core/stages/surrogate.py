"""The surrogate reward learns which images of a group were preferred (paper Eq. 7-9)."""

from __future__ import annotations

from dataclasses import dataclass

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
from tdmr1_core.stages.micro_batches import MicroBatches, Size
from tdmr1_core.stages.trained_role import TrainedRole


@dataclass(frozen=True)
class _Queries:
    """A micro-batch at the level it is asked at."""

    renoised: Tensor
    target: Tensor
    tau: Tensor
    conditioning: Conditioning


class SurrogateStage:
    """Updates the surrogate on re-noised stored points; noise is shared by the images of a group."""

    def __init__(
        self,
        roles: Roles,
        role: TrainedRole,
        *,
        reference: str,
        beta_dpo: float,
        stabilisers: Stabilisers,
        time_weight: bool,
        micro_batch: Size,
        seed: int,
    ) -> None:
        self.roles = roles
        self.role = role
        self._reference = reference
        self._beta_dpo = beta_dpo
        self._stabilisers = stabilisers
        self._time_weight = time_weight
        self.micro_batches = MicroBatches(micro_batch)
        self._seed = seed

    def accumulate(
        self,
        trajectory: Trajectory,
        advantages: Tensor,
        counters: tuple[int, int],
        boundary: Tensor,
        tau: Tensor,
        scale: float,
    ) -> dict[str, float]:
        """Add `scale` times the gradient of the mean loss over all images; returns the means of what was seen.

        `advantages`, `boundary` and `tau` are (N,). The group weight needs every image of a group, so micro-batches
        smaller than a group cost one more pass without gradient.
        """
        images, group_size = trajectory.groups.images, trajectory.groups.group_size
        weights: Tensor | None = None
        seen = {"loss/preference": 0.0, "surrogate/clipped": 0.0, "surrogate/drifted": 0.0, "surrogate/drift": 0.0}

        def learn(rows: Tensor) -> None:
            nonlocal weights
            if weights is None and len(rows) % group_size:
                weights = self._weights(trajectory, advantages, counters, boundary, tau)
            queries = self._queries(trajectory, rows, counters, boundary, tau)
            result = self.losses(
                queries, advantages[rows], boundary[rows], trajectory, None if weights is None else weights[rows]
            )
            loss = result.loss.sum() / images
            self.role.accumulate(loss * scale)
            seen["loss/preference"] += self.role.record_loss(loss, trajectory.groups, rows)
            seen["surrogate/clipped"] += result.clipped.sum().item() / images
            seen["surrogate/drifted"] += result.drifted.sum().item() / images
            seen["surrogate/drift"] += result.drift.sum().item() / images

        self.micro_batches.each(images, learn, multiple=group_size)
        return seen

    def losses(
        self,
        queries: _Queries,
        advantages: Tensor,
        boundary: Tensor,
        trajectory: Trajectory,
        weights: Tensor | None,
    ) -> PreferenceLoss:
        """Loss and statistics of each image (B,), differentiable in the surrogate alone."""
        with torch.no_grad():
            with self.roles.acting(self._reference) as backbone:
                reference = backbone.velocity(queries.renoised, queries.tau, queries.conditioning)
            old_loss = self._old_loss(queries, reference)
        with self.roles.acting(SURROGATE) as backbone:
            velocity = backbone.velocity(queries.renoised, queries.tau, queries.conditioning)
        advantages = advantages.to(velocity)
        if weights is None:
            loss, reference_loss = sample_mse(velocity, queries.target), sample_mse(reference, queries.target)
            group_size = trajectory.groups.group_size
            weights = preference_weights(advantages, loss, reference_loss, self._beta_dpo, group_size)
        share = (boundary.to(velocity) + 1) / trajectory.steps
        time_weight = share if self._time_weight else torch.ones_like(share)
        return preference_loss(
            velocity, queries.target, reference, old_loss, advantages, weights, time_weight, self._stabilisers
        )

    def _old_loss(self, queries: _Queries, reference: Tensor) -> Tensor | None:
        """The loss of the surrogate's average, for the trust region."""
        if self._stabilisers.trust_region is None:
            return None
        if self._reference == SURROGATE_EMA:
            return sample_mse(reference, queries.target)
        with self.roles.acting(SURROGATE_EMA) as backbone:
            return sample_mse(backbone.velocity(queries.renoised, queries.tau, queries.conditioning), queries.target)

    @torch.no_grad()
    def _weights(
        self,
        trajectory: Trajectory,
        advantages: Tensor,
        counters: tuple[int, int],
        boundary: Tensor,
        tau: Tensor,
    ) -> Tensor:
        """w_g of every image (N,), computed without gradient in micro-batches smaller than a group."""
        losses: list[Tensor] = []
        reference_losses: list[Tensor] = []

        def ask(rows: Tensor) -> None:
            queries = self._queries(trajectory, rows, counters, boundary, tau)
            answers = []
            for role in (SURROGATE, self._reference):
                with self.roles.acting(role) as backbone:
                    velocity = backbone.velocity(queries.renoised, queries.tau, queries.conditioning)
                answers.append(sample_mse(velocity, queries.target))
            losses.append(answers[0])
            reference_losses.append(answers[1])

        self.micro_batches.each(trajectory.groups.images, ask)
        loss, reference_loss = torch.cat(losses), torch.cat(reference_losses)
        group_size = trajectory.groups.group_size
        return preference_weights(advantages.to(loss), loss, reference_loss, self._beta_dpo, group_size)

    def _queries(
        self, trajectory: Trajectory, rows: Tensor, counters: tuple[int, int], boundary: Tensor, tau: Tensor
    ) -> _Queries:
        device = self.roles.backbone.device
        level = tau[rows].to(device)
        sigma = trajectory.sigmas.to(device)[boundary[rows] + 1]
        point = latents_at(trajectory, boundary + 1, rows, device)
        noise = noise_for(self._seed, "surrogate", trajectory.groups, counters, rows, "group", point)
        return _Queries(
            renoised=renoise(point, sigma, level, noise),
            target=renoise_velocity(point, sigma, level, noise),
            tau=level,
            conditioning=trajectory.conditioning.select(rows // trajectory.groups.group_size),
        )
