"""Samples the trajectories of the generator: K deterministic steps, with every latent kept (Eq. 6)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass

import numpy as np
import torch
from torch import Tensor

from tdmr1_core.models.roles import GENERATOR, Roles
from tdmr1_core.records import Conditioning, Groups, Trajectory
from tdmr1_core.stages.draws import noise_for
from tdmr1_core.stages.micro_batches import MicroBatches
from tdmr1_core.stages.sampling import Sampler, sample


@dataclass(eq=False)
class RolloutStage:
    """Samples the images of an iteration with the generator, without guidance."""

    roles: Roles
    sigmas: Tensor
    """Noise levels, float64 (K+1,), decreasing to 0."""
    latent_shape: tuple[int, int, int]
    """(C, H, W)."""
    _: KW_ONLY
    sampler: Sampler
    eta: float
    micro_batches: MicroBatches
    seed: int
    decode: bool
    """Whether the latents are decoded to images."""
    keep_on: torch.device
    """The device of the stored latents."""

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
        one = self.roles.backbone
        like = torch.empty(self.latent_shape, dtype=one.dtype, device=one.device)

        def draw(rows: Tensor) -> None:
            def fresh(k: int) -> Tensor:
                return noise_for(self.seed, "rollout-eta", groups, (k,), rows, "sample", like)

            with self.roles.acting(GENERATOR) as backbone:
                path = sample(
                    backbone,
                    noise_for(self.seed, "rollout", groups, (), rows, "sample", like),
                    conditioning.select(group[rows]),
                    self.sigmas,
                    sampler=self.sampler,
                    eta=self.eta,
                    fresh_noise=fresh,
                )  # (K+1, B, C, H, W)
                decoded = backbone.decode(path[-1]) if self.decode else None
            latents.append(path.to(self.keep_on))
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
            stored_velocity=self.sampler == "euler" and self.eta == 0,
            generator_updates=generator_updates,
        )
