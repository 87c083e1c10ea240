"""Trains the generator on the surrogate reward, with a reverse KL that keeps it close to the teacher (Eq. 10-11)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Literal

import torch
from torch import Tensor

from tdmr1_core.algorithm.flow import euler_step, guide, predict_clean, renoise
from tdmr1_core.algorithm.objectives import (
    GeneratorWeights,
    cfg_loss,
    direction_loss,
    direction_normaliser,
    generator_loss,
    joint_huber_loss,
)
from tdmr1_core.models.backbone import velocities
from tdmr1_core.models.roles import FAKE, GENERATOR, REFERENCE, SURROGATE, TEACHER, Roles
from tdmr1_core.records import Conditioning, Trajectory
from tdmr1_core.stages.draws import latents_at, noise_for
from tdmr1_core.stages.micro_batches import MicroBatches
from tdmr1_core.stages.trained_role import TrainedRole

NetworkInput = tuple[Tensor, Tensor, Conditioning]
"""Latents (B, C, H, W), noise levels (B,) and conditioning (B rows)."""


@dataclass(frozen=True)
class GeneratorTerms:
    """Losses per image, (B,): the total to differentiate, and its terms."""

    total: Tensor
    kl: Tensor
    cfg: Tensor
    reward: Tensor
    """0 for an image without a reward term."""


@dataclass(eq=False)
class GeneratorStage:
    """Accumulates the gradient of the generator.

    Without a reward term this is TDM distillation: the direction is x_0 of the guided teacher - x_0 of the fake score.
    """

    roles: Roles
    role: TrainedRole
    _: KW_ONLY
    reference_role: str
    """The role of p_ref."""
    weights: GeneratorWeights
    loss: Literal["squared", "huber"]
    huber_c: float
    joint_huber: bool
    """Whether the Huber loss of steps k >= trunc_steps has the errors of both terms under one root."""
    guidance_scale: float
    rl_cfg: float
    normaliser_floor: float
    has_reward_term: bool
    """False in a distillation."""
    micro_batches: MicroBatches
    seed: int

    def accumulate(
        self, trajectory: Trajectory, step: int, step_index: Tensor, tau: Tensor, tau_reward: Tensor, scale: float
    ) -> dict[str, float]:
        """Add `scale` times the gradient of the mean loss over all images. Returns the means by metric name.

        `step_index`, `tau` (noise level of the KL and CFG terms) and `tau_reward` (of the reward term) have shape (N,).
        Surrogate and reference are evaluated only for the images with a reward term, those with k < trunc_steps; the
        mean of the reward term counts the others as 0.
        """
        groups, latents = trajectory.groups, trajectory.latents
        means = {"loss/generator": 0.0, "loss/kl": 0.0, "loss/cfg": 0.0, "loss/reward": 0.0}

        def accumulate_rows(rows: Tensor) -> None:
            terms = self.losses(
                trajectory,
                rows,
                step_index,
                tau[rows],
                tau_reward[rows],
                noise_for(self.seed, "generator", groups, (step,), rows, "sample", latents),
                noise_for(self.seed, "reward", groups, (step,), rows, "group", latents),
                rewarded=self._rewarded(step_index[rows]),
            )
            loss = terms.total.sum() / groups.images
            self.role.accumulate(loss * scale)
            self.role.record_loss(loss, groups, rows)
            parts = (terms.total, terms.kl, terms.cfg, terms.reward)
            for name, part in zip(means, parts, strict=True):
                means[name] += part.sum().item() / groups.images

        self.micro_batches.each(groups.images, accumulate_rows)
        return means

    def losses(
        self,
        trajectory: Trajectory,
        rows: Tensor,
        step_index: Tensor,
        tau: Tensor,
        tau_reward: Tensor,
        noise: Tensor,
        noise_reward: Tensor,
        *,
        rewarded: Tensor | None = None,
    ) -> GeneratorTerms:
        """The terms of each image of `rows`, differentiable with respect to the generator only.

        `step_index` is (N,); `rows`, `tau` and `tau_reward` are (B,); the noises are (B, C, H, W). `rewarded` (R,)
        holds the positions in `rows` of the images with a reward term, those with k < trunc_steps (None: all).
        """
        device = self.roles.backbone.device
        sigmas = trajectory.sigmas.to(device)
        sigma, sigma_next = sigmas[step_index[rows]], sigmas[step_index[rows] + 1]  # (B,) each
        tau, tau_reward = tau.to(device), tau_reward.to(device)
        conditioning = trajectory.conditioning_for(rows)
        noise, noise_reward = noise.to(device), noise_reward.to(device)
        start = latents_at(trajectory, step_index, rows, device)  # (B, C, H, W)

        with self.roles.acting(GENERATOR) as backbone:
            velocity = backbone.velocity(start, sigma, conditioning)
        clean = predict_clean(start, velocity, sigma)  # (B, C, H, W)
        with torch.no_grad():
            point = euler_step(start, velocity, sigma, sigma_next)
            renoised = renoise(point, sigma_next, tau, noise)
            at_tau_reward: NetworkInput | None = None
            if self.has_reward_term and self.weights.reward_scale > 0 and (rewarded is None or len(rewarded)):
                at_tau_reward = (renoise(point, sigma_next, tau_reward, noise_reward), tau_reward, conditioning)
                if rewarded is not None:
                    at_tau_reward = _select(at_tau_reward, rewarded)
            teacher, unconditional, reference = self._evaluate_teacher_and_reference(
                (renoised, tau, conditioning), at_tau_reward
            )
            with self.roles.acting(FAKE) as backbone:
                fake = predict_clean(renoised, backbone.velocity(renoised, tau, conditioning), tau)
            guided = guide(teacher, unconditional, self.guidance_scale)
            d_kl, d_cfg = teacher - fake, guided - teacher
            w_teacher = direction_normaliser(clean, guided, self.normaliser_floor)

        if not self.has_reward_term:
            total = self._loss(clean, d_kl + d_cfg, w_teacher)
            return GeneratorTerms(total, total.detach(), torch.zeros_like(total), torch.zeros_like(total))
        kl = self._loss(clean, d_kl, w_teacher)
        cfg = cfg_loss(
            clean,
            d_cfg,
            w_teacher,
            kind=self.loss,
            huber_c=self.huber_c,
            guidance_scale=self.guidance_scale,
        )
        reward = torch.zeros_like(kl)
        if at_tau_reward is not None and reference is not None:
            reward = self._reward_loss(clean, at_tau_reward, reference, rewarded)
        unrewarded = cfg + kl
        if self.loss == "huber" and self.joint_huber:
            unrewarded = joint_huber_loss(clean, d_kl, d_cfg, w_teacher, self.huber_c)
        total = generator_loss(kl, cfg, reward, unrewarded, step_index[rows].to(device), self.weights)
        return GeneratorTerms(total, kl, cfg, reward)

    def _rewarded(self, step_index: Tensor) -> Tensor | None:
        """The positions (R,) in a micro-batch of the images with k < trunc_steps; None for all. k is (B,)."""
        positions = (step_index < self.weights.trunc_steps).nonzero().flatten()
        return None if len(positions) == len(step_index) else positions

    def _reward_loss(
        self, clean: Tensor, at_tau_reward: NetworkInput, reference: Tensor, rewarded: Tensor | None
    ) -> Tensor:
        """L_reward (B,), 0 for the images that are not `rewarded`.

        `clean` is (B, C, H, W). `at_tau_reward` and `reference` (R, C, H, W), x_0 of the reference, belong to the
        `rewarded` images.
        """
        chosen = clean if rewarded is None else clean[rewarded]  # (R, C, H, W)
        with torch.no_grad():
            surrogate = self._surrogate(*at_tau_reward)
            normaliser = direction_normaliser(chosen, surrogate, self.normaliser_floor)
        loss = self._loss(chosen, surrogate - reference, normaliser)  # (R,)
        if rewarded is None:
            return loss
        return loss.new_zeros(len(clean)).index_copy(0, rewarded.to(loss.device), loss)

    def _loss(self, clean: Tensor, direction: Tensor, normaliser: Tensor) -> Tensor:
        return direction_loss(clean, direction, normaliser, kind=self.loss, huber_c=self.huber_c)

    def _evaluate_teacher_and_reference(
        self, at_tau: NetworkInput, at_tau_reward: NetworkInput | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """x_0 of the teacher at tau, with the prompt and without; and x_0 of the reference at tau_reward.

        The first two are (B, C, H, W). The last is (R, C, H, W), or None without `at_tau_reward`. A reference that is
        the teacher is evaluated in the same forward pass.
        """
        renoised, tau, conditioning = at_tau
        inputs: list[NetworkInput] = [at_tau]
        guided = self.guidance_scale != 1.0
        if guided:
            inputs.append((renoised, tau, self.roles.backbone.unconditional.expand(len(conditioning))))
        same_pass = self.reference_role in (TEACHER, REFERENCE)
        if at_tau_reward is not None and same_pass:
            inputs.append(at_tau_reward)
        predictions = self._clean(TEACHER, inputs)
        teacher = predictions[0]
        unconditional = predictions[1] if guided else teacher
        if at_tau_reward is None:
            return teacher, unconditional, None
        reference = predictions[-1] if same_pass else self._clean(self.reference_role, [at_tau_reward])[0]
        return teacher, unconditional, reference

    def _surrogate(self, renoised: Tensor, tau: Tensor, conditioning: Conditioning) -> Tensor:
        """x_0 of the surrogate (B, C, H, W), guided with scale rl_cfg against its own unconditional prediction."""
        inputs: list[NetworkInput] = [(renoised, tau, conditioning)]
        if self.rl_cfg == 1.0:
            return self._clean(SURROGATE, inputs)[0]
        inputs.append((renoised, tau, self.roles.backbone.unconditional.expand(len(conditioning))))
        conditional, unconditional = self._clean(SURROGATE, inputs)
        return guide(conditional, unconditional, self.rl_cfg)

    def _clean(self, role: str, inputs: Sequence[NetworkInput]) -> list[Tensor]:
        """x_0 predicted by a role for each input, (B, C, H, W) each, in one forward pass."""
        with self.roles.acting(role) as backbone:
            found = velocities(backbone, inputs)
        return [
            predict_clean(latents, velocity, level) for (latents, level, _), velocity in zip(inputs, found, strict=True)
        ]


def _select(inputs: NetworkInput, rows: Tensor) -> NetworkInput:
    """The given rows (R,) of an input of a network."""
    latents, level, conditioning = inputs
    return latents[rows], level[rows], conditioning.select(rows)
