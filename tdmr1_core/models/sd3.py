"""Stable Diffusion 3 and 3.5 as a Backbone: any StableDiffusion3Pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tdmr1_core.models.families import FAMILIES
from tdmr1_core.models.pipeline import TIMESTEP_SCALE, PipelineBackbone
from tdmr1_core.records import Conditioning


class SD3Backbone(PipelineBackbone):
    """A StableDiffusion3Pipeline. Its network returns v = eps - x_0 at timestep 1000 sigma."""

    family = FAMILIES["sd3"]

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts to token embeddings (B, L, D) and pooled embeddings (B, P)."""
        embeddings, _, pooled, _ = self.pipeline.encode_prompt(
            list(prompts),
            None,
            None,
            do_classifier_free_guidance=False,
            device=self.device,
            max_sequence_length=self._max_sequence_length,
        )
        return Conditioning(embeddings, pooled)

    @staticmethod
    def text_widths(denoiser: Mapping[str, Any]) -> tuple[int, int]:
        """D and P, from the config of the denoiser."""
        return denoiser["joint_attention_dim"], denoiser["pooled_projection_dim"]

    def _network_velocity(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        velocity: Tensor = self.network(
            hidden_states=latents.to(self._precision),
            timestep=(sigma * TIMESTEP_SCALE).to(latents),
            encoder_hidden_states=conditioning.embeddings.to(self._precision),
            pooled_projections=conditioning.pooled.to(self._precision),
            return_dict=False,
        )[0]  # (B, C, H, W)
        return velocity
