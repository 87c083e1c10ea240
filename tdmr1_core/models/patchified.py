"""Backbones with the autoencoder of FLUX.2, whose 2 x 2 latents are the channels of one latent: klein, ERNIE-Image."""

from __future__ import annotations

import torch
from torch import Tensor

from tdmr1_core.models.pipeline import PipelineBackbone


def unpatchify(latents: Tensor) -> Tensor:
    """Latents (B, 4 C, H, W) of the network as latents (B, C, 2 H, 2 W) of the autoencoder."""
    batch, channels, height, width = latents.shape
    blocks = latents.reshape(batch, channels // 4, 2, 2, height, width).permute(0, 1, 4, 2, 5, 3)
    return blocks.reshape(batch, channels // 4, height * 2, width * 2)


class PatchifiedBackbone(PipelineBackbone):
    """A pipeline with the autoencoder of FLUX.2.

    The statistics of its batch norm are applied when latents are decoded. Noise and the latents of the network are
    normalized: they are never multiplied by them.
    """

    def _decode(self, latents: Tensor) -> Tensor:
        norm = self.pipeline.vae.bn
        mean = norm.running_mean.view(1, -1, 1, 1).to(latents)
        std = torch.sqrt(norm.running_var.view(1, -1, 1, 1) + self._norm_epsilon).to(latents)
        pixels: Tensor = self.pipeline.vae.decode(unpatchify(latents * std + mean), return_dict=False)[0]
        return pixels

    @property
    def _norm_epsilon(self) -> float:
        """epsilon of the batch norm."""
        return float(self.pipeline.vae.config.batch_norm_eps)
