"""FLUX.2-klein and klein-base as a Backbone: any Flux2KleinPipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tdmr1_core.models.families import FAMILIES
from tdmr1_core.models.patchified import PatchifiedBackbone
from tdmr1_core.models.pipeline import TIMESTEP_SCALE
from tdmr1_core.records import Conditioning


class Flux2KleinBackbone(PatchifiedBackbone):
    """A Flux2KleinPipeline. Its network returns v = eps - x_0 at time sigma; there is no pooled embedding (P = 0)."""

    family = FAMILIES["flux2_klein"]

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts to three hidden layers of Qwen3 side by side, (B, L, 3 D), L = max_sequence_length.

        The network was trained with the padding of short prompts, which it does not distinguish from tokens.
        """
        embeddings, _ = self.pipeline.encode_prompt(
            list(prompts), device=self.device, max_sequence_length=self._max_sequence_length
        )
        return Conditioning(embeddings, embeddings.new_empty(len(prompts), 0))

    @staticmethod
    def text_widths(denoiser: Mapping[str, Any]) -> tuple[int, int]:
        """D of all three layers and P = 0, from the config of the denoiser."""
        return denoiser["joint_attention_dim"], 0

    def _network_velocity(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        batch, _, height, width = latents.shape
        tokens = self.network(
            hidden_states=latents.flatten(2).transpose(1, 2).to(self._precision),  # (B, H W, C)
            timestep=(sigma * TIMESTEP_SCALE).to(latents) / TIMESTEP_SCALE,
            guidance=None,
            encoder_hidden_states=conditioning.embeddings.to(self._precision),
            txt_ids=_ids(batch, latents.device, 1, 1, conditioning.embeddings.shape[1]),
            img_ids=_ids(batch, latents.device, height, width, 1),
            return_dict=False,
        )[0]
        return tokens.transpose(1, 2).reshape(latents.shape)


def _ids(batch: int, device: torch.device, height: int, width: int, length: int) -> Tensor:
    """The position (0, row, column, token) of every token, (B, height x width x length, 4)."""
    sizes = (1, height, width, length)
    ids = torch.cartesian_prod(*(torch.arange(size, device=device) for size in sizes))
    return ids.expand(batch, -1, -1)
