"""The family as a Backbone: how prompts are encoded and how the network is called."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tdmr1_core.models.pipeline import TIMESTEP_SCALE, PipelineBackbone
from tdmr1_core.records import Conditioning
from tdmr1_dots import FAMILY


class DotsBackbone(PipelineBackbone):
    """A DotsPipeline. Its network returns v = eps - x_0 at timestep 1000 sigma; pooled embeddings are empty (P = 0)."""

    family = FAMILY

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts to token embeddings (B, L, D)."""
        texts = self.pipeline.encode_prompt(list(prompts), self.device)
        return Conditioning(texts, texts.new_empty(len(texts), 0))

    def call_arguments(self, conditioning: Conditioning) -> dict[str, Any]:
        """The embeddings as arguments of the pipeline."""
        return {"prompt_embeds": conditioning.embeddings.to(self.dtype)}

    @staticmethod
    def text_widths(denoiser: Mapping[str, Any]) -> tuple[int, int]:
        """D and P = 0, from the config of the denoiser."""
        return denoiser["text_width"], 0

    def _network_velocity(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """v (B, C, H, W) of latents (B, C, H, W) at noise levels sigma (B,)."""
        texts = conditioning.embeddings.to(self._precision)
        velocity: Tensor = self.network(latents.to(self._precision), (sigma * TIMESTEP_SCALE).to(latents), texts)
        return velocity
