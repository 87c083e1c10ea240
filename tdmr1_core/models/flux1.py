"""FLUX.1 (schnell, dev) as a Backbone: any FluxPipeline.

The guidance that is distilled into dev is an input of its network, not classifier-free guidance; it has the default of
the pipeline here. schnell has none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tdmr1_core.models.families import FAMILIES
from tdmr1_core.models.packed import PackedBackbone, pack, unpack
from tdmr1_core.models.pipeline import TIMESTEP_SCALE
from tdmr1_core.records import Conditioning

EMBEDDED_GUIDANCE = 3.5
"""The default `guidance_scale` of the pipeline, an input of dev's network."""


class Flux1Backbone(PackedBackbone):
    """A FluxPipeline. Its network returns v = eps - x_0 at time sigma."""

    family = FAMILIES["flux1"]

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts to T5 embeddings (B, L, D), L = max_sequence_length, and CLIP's pooled embeddings (B, P)."""
        embeddings, pooled, _ = self.pipeline.encode_prompt(
            list(prompts), device=self.device, max_sequence_length=self._max_sequence_length
        )
        return Conditioning(embeddings, pooled)

    @staticmethod
    def text_widths(denoiser: Mapping[str, Any]) -> tuple[int, int]:
        """D and P, from the config of the denoiser."""
        return denoiser["joint_attention_dim"], denoiser["pooled_projection_dim"]

    def _network_velocity(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        batch, _, height, width = latents.shape
        guidance = None
        if self.pipeline.transformer.config.guidance_embeds:
            guidance = torch.full((batch,), EMBEDDED_GUIDANCE, device=latents.device)
        tokens = self.network(
            hidden_states=pack(latents).to(self._precision),
            timestep=(sigma * TIMESTEP_SCALE).to(latents) / TIMESTEP_SCALE,
            guidance=guidance,
            pooled_projections=conditioning.pooled.to(self._precision),
            encoder_hidden_states=conditioning.embeddings.to(self._precision),
            txt_ids=latents.new_zeros(conditioning.embeddings.shape[1], 3),
            img_ids=_image_ids(latents, height // 2, width // 2),
            return_dict=False,
        )[0]
        return unpack(tokens, height, width)


def _image_ids(like: Tensor, rows: int, columns: int) -> Tensor:
    """The position (0, row, column) of every token, (rows x columns, 3)."""
    ids = like.new_zeros(rows, columns, 3)
    ids[..., 1] = torch.arange(rows, device=like.device)[:, None]
    ids[..., 2] = torch.arange(columns, device=like.device)[None, :]
    return ids.reshape(rows * columns, 3)
