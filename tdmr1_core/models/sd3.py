"""Stable Diffusion 3 and 3.5 behind the Backbone protocol: any directory or hub id of a StableDiffusion3Pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tdmr1_core.algorithm.flow import sigma_schedule
from tdmr1_core.models.protocol import guide
from tdmr1_core.records import Conditioning

TIMESTEPS = 1000
"""SD3's networks take sigma as a timestep of a thousand."""


class SD3Backbone:
    """A StableDiffusion3Pipeline's parts, frozen, in rectified-flow terms (their velocity has our sign already)."""

    def __init__(
        self, pipeline: Any, *, device: torch.device, precision: torch.dtype, max_sequence_length: int
    ) -> None:
        self.pipeline = pipeline
        self.network = pipeline.transformer
        self.device = device
        self.dtype = torch.promote_types(precision, torch.float32)
        self._precision = precision
        self._max_sequence_length = max_sequence_length
        encoders = [pipeline.text_encoder, pipeline.text_encoder_2, pipeline.text_encoder_3]
        for part in (pipeline.transformer, *(encoder for encoder in encoders if encoder is not None)):
            _freeze(part, device, precision)
        _freeze(pipeline.vae, device, self.dtype)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Prompts to token and pooled embeddings, through the pipeline's own encoders."""
        embeddings, _, pooled, _ = self.pipeline.encode_prompt(
            list(prompts),
            None,
            None,
            do_classifier_free_guidance=False,
            device=self.device,
            max_sequence_length=self._max_sequence_length,
        )
        return Conditioning(embeddings, pooled)

    @cached_property
    def unconditional(self) -> Conditioning:
        """The conditioning of the empty prompt, one row."""
        return self.encode([""])

    def velocity(
        self, latents: Tensor, sigma: Tensor, conditioning: Conditioning, guidance_scale: float = 1.0
    ) -> Tensor:
        """v (B, C, H, W); with guidance both branches run in one batch."""
        if guidance_scale == 1.0:
            return self._forward(latents, sigma, conditioning)
        both = Conditioning.cat([self.unconditional.expand(len(latents)), conditioning])
        unconditional, conditional = self._forward(latents.repeat(2, 1, 1, 1), sigma.repeat(2), both).chunk(2)
        return guide(conditional, unconditional, guidance_scale)

    def _forward(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        with torch.autocast(self.device.type, self._precision, enabled=self._precision == torch.bfloat16):
            velocity = self.network(
                hidden_states=latents.to(self._precision),
                timestep=(sigma * TIMESTEPS).to(latents),
                encoder_hidden_states=conditioning.embeddings,
                pooled_projections=conditioning.pooled,
                return_dict=False,
            )[0]
        return velocity.to(self.dtype)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> np.ndarray:
        """Clean latents to uint8 (B, height, width, 3), exactly as the pipeline does it."""
        config = self.pipeline.vae.config
        pixels = self.pipeline.vae.decode(latents / config.scaling_factor + config.shift_factor, return_dict=False)[0]
        pictures = self.pipeline.image_processor.postprocess(pixels, output_type="np")
        return (pictures * 255).round().astype(np.uint8)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, H, W) of the latents of a picture of that size in pixels."""
        factor = self.pipeline.vae_scale_factor
        return (self.network.config.in_channels, height // factor, width // factor)

    def schedule(self, steps: int, shift: float | None = None) -> Tensor:
        """The K + 1 levels, with the scheduler's own shift unless another is given."""
        return sigma_schedule(steps, shift or self.pipeline.scheduler.config.shift)


def _freeze(part: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    part.requires_grad_(False).eval().to(device)
    if any(weight.dtype != dtype for weight in part.parameters()):
        part.to(dtype=dtype)


def load_pipeline(source: str, *, with_t5: bool) -> Any:
    """A StableDiffusion3Pipeline from a directory or hub id, without its T5 encoder unless that is wanted.

    Raises OSError where weights are not safetensors: nothing is unpickled.
    """
    from diffusers import StableDiffusion3Pipeline

    absent = {} if with_t5 else {"text_encoder_3": None, "tokenizer_3": None}
    pipeline = StableDiffusion3Pipeline.from_pretrained(source, use_safetensors=True, **absent)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
