"""The generator follows the surrogate's gradient while a reverse KL keeps it near the teacher (paper Eq. 10-11)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tdmr1_core.algorithm.flow import euler_step, predict_clean, renoise
from tdmr1_core.algorithm.objectives import GeneratorWeights, direction_loss, direction_normaliser, generator_loss
from tdmr1_core.models.backbone import guide, velocities
from tdmr1_core.models.roles import FAKE, GENERATOR, REFERENCE, SURROGATE, TEACHER, Roles
from tdmr1_core.records import Conditioning, Trajectory
from tdmr1_core.stages.draws import noise_for
from tdmr1_core.stages.micro_batches import MicroBatches, Size
from tdmr1_core.stages.trained_role import TrainedRole

Query = tuple[Tensor, Tensor, Conditioning]


@dataclass(frozen=True)
class GeneratorTerms:
    """Losses of each image (B,): the total to differentiate and its parts."""

    total: Tensor
    kl: Tensor
    cfg: Tensor
    reward: Tensor


class GeneratorStage:
    """Updates the generator. With `reward=False` this is TDM distillation: d = x_0 guided teacher - x_0 fake."""

    def __init__(
        self,
        roles: Roles,
        role: TrainedRole,
        *,
        reference: str,
        weights: GeneratorWeights,
        loss: Literal["squared", "huber"],
        huber_c: float,
        guidance_scale: float,
        rl_cfg: float,
        normaliser_floor: float,
        reward: bool,
        micro_batch: Size,
        seed: int,
    ) -> None:
        self.roles = roles
        self.role = role
        self.reward = reward
        self._reference = reference
        self._weights = weights
        self._kind = loss
        self._huber_c = huber_c
        self._guidance_scale = guidance_scale
        self._rl_cfg = rl_cfg
        self._floor = normaliser_floor
        self.micro_batches = MicroBatches(micro_batch)
        self._seed = seed

    def accumulate(
        self, trajectory: Trajectory, step: int, step_index: Tensor, tau: Tensor, tau_reward: Tensor, scale: float
    ) -> dict[str, float]:
        """Add `scale` times the gradient of the mean loss over all images; returns the means of the terms.

        `step_index`, `tau` (KL and CFG) and `tau_reward` (surrogate) are (N,).
        """
        groups, latents = trajectory.groups, trajectory.latents
        seen = {"loss/generator": 0.0, "loss/kl": 0.0, "loss/cfg": 0.0, "loss/reward": 0.0}

        def learn(rows: Tensor) -> None:
            terms = self.losses(
                trajectory,
                rows,
                step_index[rows],
                tau[rows],
                tau_reward[rows],
                noise_for(self._seed, "generator", groups, (step,), rows, "sample", latents),
                noise_for(self._seed, "reward", groups, (step,), rows, "group", latents),
            )
            loss = terms.total.sum() / groups.images
            self.role.accumulate(loss * scale)
            self.role.record_loss(loss, groups, rows)
            parts = (terms.total, terms.kl, terms.cfg, terms.reward)
            for name, part in zip(seen, parts, strict=True):
                seen[name] += part.sum().item() / groups.images

        self.micro_batches.each(groups.images, learn)
        return seen

    def losses(
        self,
        trajectory: Trajectory,
        rows: Tensor,
        step_index: Tensor,
        tau: Tensor,
        tau_reward: Tensor,
        noise: Tensor,
        noise_reward: Tensor,
    ) -> GeneratorTerms:
        """Every term of each of the images `rows` (all arguments (B, …)), differentiable in the generator alone."""
        device = self.roles.backbone.device
        sigmas = trajectory.sigmas.to(device)
        sigma, sigma_next = sigmas[step_index], sigmas[step_index + 1]
        tau, tau_reward = tau.to(device), tau_reward.to(device)
        conditioning = trajectory.conditioning.select(rows // trajectory.groups.group_size)
        noise, noise_reward = noise.to(device), noise_reward.to(device)
        start = trajectory.latents[step_index, rows].to(device)

        with self.roles.acting(GENERATOR) as backbone:
            velocity = backbone.velocity(start, sigma, conditioning)
        clean = predict_clean(start, velocity, sigma)
        with torch.no_grad():
            point = euler_step(start, velocity, sigma, sigma_next)
            renoised = renoise(point, sigma_next, tau, noise)
            renoised_reward = renoise(point, sigma_next, tau_reward, noise_reward)
            teacher, unconditional, reference = self._teacher(
                (renoised, tau, conditioning), (renoised_reward, tau_reward, conditioning)
            )
            with self.roles.acting(FAKE) as backbone:
                fake = predict_clean(renoised, backbone.velocity(renoised, tau, conditioning), tau)
            guided = guide(teacher, unconditional, self._guidance_scale)
            d_kl, d_cfg = teacher - fake, guided - teacher
            w_teacher = direction_normaliser(clean, guided, self._floor)

        if not self.reward:
            total = self._loss(clean, d_kl + d_cfg, w_teacher)
            return GeneratorTerms(total, total.detach(), torch.zeros_like(total), torch.zeros_like(total))
        kl = self._loss(clean, d_kl, w_teacher)
        cfg = self._loss(clean, d_cfg, w_teacher)
        if self._kind == "huber":
            cfg = cfg * (self._guidance_scale - 1)
        reward = torch.zeros_like(kl)
        if reference is not None:
            with torch.no_grad():
                surrogate = self._surrogate(renoised_reward, tau_reward, conditioning)
                w_reward = direction_normaliser(clean, surrogate, self._floor)
            reward = self._loss(clean, surrogate - reference, w_reward)
        return GeneratorTerms(generator_loss(kl, cfg, reward, step_index.to(device), self._weights), kl, cfg, reward)

    def _loss(self, clean: Tensor, direction: Tensor, normaliser: Tensor) -> Tensor:
        return direction_loss(clean, direction, normaliser, kind=self._kind, huber_c=self._huber_c)

    def _teacher(self, at_tau: Query, at_tau_reward: Query) -> tuple[Tensor, Tensor, Tensor | None]:
        """x_0 of the teacher with and without the prompt at tau, and of the reference at the reward's level."""
        renoised, tau, conditioning = at_tau
        queries: list[Query] = [at_tau]
        guided = self._guidance_scale != 1.0
        if guided:
            queries.append((renoised, tau, self.roles.backbone.unconditional.expand(len(conditioning))))
        wants_reference = self.reward and self._weights.reward_scale > 0
        together = wants_reference and self._reference in (TEACHER, REFERENCE)
        if together:
            queries.append(at_tau_reward)
        answers = self._clean(TEACHER, queries)
        teacher = answers[0]
        unconditional = answers[1] if guided else teacher
        if not wants_reference:
            return teacher, unconditional, None
        reference = answers[-1] if together else self._clean(self._reference, [at_tau_reward])[0]
        return teacher, unconditional, reference

    def _surrogate(self, renoised: Tensor, tau: Tensor, conditioning: Conditioning) -> Tensor:
        """x_0 of the surrogate, guided by its own unconditional prediction (rl_cfg)."""
        queries: list[Query] = [(renoised, tau, conditioning)]
        if self._rl_cfg == 1.0:
            return self._clean(SURROGATE, queries)[0]
        queries.append((renoised, tau, self.roles.backbone.unconditional.expand(len(conditioning))))
        conditional, unconditional = self._clean(SURROGATE, queries)
        return guide(conditional, unconditional, self._rl_cfg)

    def _clean(self, role: str, queries: Sequence[Query]) -> list[Tensor]:
        """x_0 of a role for several questions, in one forward pass."""
        with self.roles.acting(role) as backbone:
            answers = velocities(backbone, queries)
        return [
            predict_clean(latents, velocity, level)
            for (latents, level, _), velocity in zip(queries, answers, strict=True)
        ]
