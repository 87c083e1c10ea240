"""Samples the trajectories of the generator: K deterministic steps, with every latent kept (Eq. 6)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tdmr1_core.models.roles import GENERATOR, Roles
from tdmr1_core.records import Conditioning, Groups, Trajectory
from tdmr1_core.stages.draws import noise_for
from tdmr1_core.stages.micro_batches import MicroBatches, Size
from tdmr1_core.stages.sampling import Sampler, sample


class RolloutStage:
    """Samples the images of an iteration with the generator, without guidance.

    `latent_shape` is (C, H, W). `keep_on` is the device of the stored latents, by default that of the backbone.
    """

    def __init__(
        self,
        roles: Roles,
        sigmas: Tensor,
        latent_shape: tuple[int, int, int],
        *,
        sampler: Sampler,
        eta: float,
        micro_batch: Size,
        seed: int,
        decode: bool,
        keep_on: torch.device | None = None,
    ) -> None:
        self.roles = roles
        self.sigmas = sigmas
        self._like = torch.empty(latent_shape, dtype=roles.backbone.dtype, device=roles.backbone.device)
        self._sampler = sampler
        self._eta = eta
        self.micro_batches = MicroBatches(micro_batch)
        self._seed = seed
        self._decode = decode
        self._keep_on = keep_on or roles.backbone.device

    @torch.no_grad()
    def run(
        self,
        groups: Groups,
        conditioning: Conditioning,
        generator_updates: int,
        on_decoded: Callable[[np.ndarray], None] | None = None,
    ) -> Trajectory:
        """Sample and decode. `on_decoded(images)` is called with each decoded micro-batch, in order.

        `conditioning` has one row per group. The images are uint8 (B, height, width, 3).
        """
        group = torch.tensor(groups.group_of_image)  # (N,)
        latents, images = [], []

        def draw(rows: Tensor) -> None:
            def fresh(k: int) -> Tensor:
                return noise_for(self._seed, "rollout-eta", groups, (k,), rows, "sample", self._like)

            with self.roles.acting(GENERATOR) as backbone:
                path = sample(
                    backbone,
                    noise_for(self._seed, "rollout", groups, (), rows, "sample", self._like),
                    conditioning.select(group[rows]),
                    self.sigmas,
                    sampler=self._sampler,
                    eta=self._eta,
                    fresh_noise=fresh,
                )  # (K+1, B, C, H, W)
                decoded = backbone.decode(path[-1]) if self._decode else None
            latents.append(path.to(self._keep_on))
            if decoded is not None:
                images.append(decoded)
                if on_decoded is not None:
                    on_decoded(decoded)

        self.micro_batches.each(groups.images, draw)
        return Trajectory(
            groups=groups,
            latents=torch.cat(latents, dim=1),
            sigmas=self.sigmas,
            conditioning=conditioning,
            images=np.concatenate(images) if images else None,
            stored_velocity=self._sampler == "euler" and self._eta == 0,
            generator_updates=generator_updates,
        )
