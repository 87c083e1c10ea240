"""Backbones whose pipeline packs 2 x 2 latents of the autoencoder into a token: FLUX.1, Qwen-Image, Krea 2."""

from __future__ import annotations

import torch
from torch import Tensor

from tdmr1_core.models.pipeline import PipelineBackbone


def pack(latents: Tensor) -> Tensor:
    """Latents (B, C, H, W) as tokens (B, H W / 4, 4 C), row by row; a token holds 2 x 2 latents, channels first."""
    batch, channels, height, width = latents.shape
    blocks = latents.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return blocks.reshape(batch, (height // 2) * (width // 2), channels * 4)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `pack`, for latents of `height` x `width`."""
    batch, _, channels = tokens.shape
    blocks = tokens.view(batch, height // 2, width // 2, channels // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return blocks.reshape(batch, channels // 4, height, width)


class PackedBackbone(PipelineBackbone):
    """A pipeline that packs latents. The engine's latents are those of the autoencoder, (B, C, H, W)."""

    def pipeline_latents(self, latents: Tensor) -> Tensor:
        """Latents (B, C, H, W) as tokens (B, H W / 4, 4 C)."""
        return pack(latents)


class VideoAutoencoderBackbone(PackedBackbone):
    """A pipeline with the autoencoder of Qwen-Image, which is one for videos, with a mean and a std per channel."""

    def _decode(self, latents: Tensor) -> Tensor:
        config = self.pipeline.vae.config
        mean, std = (
            torch.tensor(values).view(1, -1, 1, 1).to(latents) for values in (config.latents_mean, config.latents_std)
        )
        # Dividing by 1 / std, as the pipelines do, gives the same pixels to the last bit.
        frames = (latents / (1.0 / std) + mean).unsqueeze(2)  # (B, C, 1, H, W)
        pixels: Tensor = self.pipeline.vae.decode(frames, return_dict=False)[0][:, :, 0]
        return pixels
