"""Krea 2 Turbo and Raw as a Backbone: any Krea2Pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tdmr1_core.models.families import FAMILIES
from tdmr1_core.models.packed import VideoAutoencoderBackbone, pack, unpack
from tdmr1_core.models.pipeline import TIMESTEP_SCALE
from tdmr1_core.records import Conditioning


class Krea2Backbone(VideoAutoencoderBackbone):
    """A Krea2Pipeline. Its network returns v = eps - x_0 at time sigma; there is no pooled embedding (P = 0).

    A prompt always has max_sequence_length tokens: its own, padding, and the five tokens that end the template. A mask
    says which of them are padding.
    """

    family = FAMILIES["krea2"]

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts to the tapped hidden layers of Qwen3-VL, (B, L, layers x D), with a mask (B, L)."""
        embeddings, mask = self.pipeline.encode_prompt(
            list(prompts), device=self.device, max_sequence_length=self._max_sequence_length
        )  # (B, L, layers, D), (B, L)
        return Conditioning(embeddings.flatten(2), embeddings.new_empty(len(prompts), 0), mask=mask.cpu())

    def call_arguments(self, conditioning: Conditioning) -> dict[str, Any]:
        """The embeddings and their mask as arguments of the pipeline."""
        assert conditioning.mask is not None
        layers = self._layers(conditioning.embeddings.to(self.dtype))
        return {"prompt_embeds": layers, "prompt_embeds_mask": conditioning.mask.to(self.device)}

    @staticmethod
    def text_widths(denoiser: Mapping[str, Any]) -> tuple[int, int]:
        """D of all layers and P = 0, from the config of the denoiser."""
        return denoiser["num_text_layers"] * denoiser["text_hidden_dim"], 0

    def _layers(self, embeddings: Tensor) -> Tensor:
        """Token embeddings (B, L, layers x D) as (B, L, layers, D)."""
        return embeddings.unflatten(2, (self.pipeline.transformer.config.num_text_layers, -1))

    def _network_velocity(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        _, _, height, width = latents.shape
        tokens = self.network(
            hidden_states=pack(latents).to(self._precision),
            encoder_hidden_states=self._layers(conditioning.embeddings.to(self._precision)),
            timestep=(sigma * TIMESTEP_SCALE).to(latents) / TIMESTEP_SCALE,
            position_ids=_position_ids(latents, conditioning.embeddings.shape[1], height // 2, width // 2),
            encoder_attention_mask=conditioning.token_mask,
            return_dict=False,
        )[0]
        return unpack(tokens, height, width)


def _position_ids(like: Tensor, texts: int, rows: int, columns: int) -> Tensor:
    """The position (0, row, column) of every token, zeros for texts, (texts + rows x columns, 3)."""
    ids = torch.zeros(rows, columns, 3, device=like.device)
    ids[..., 1] = torch.arange(rows, device=like.device)[:, None]
    ids[..., 2] = torch.arange(columns, device=like.device)[None, :]
    return torch.cat([torch.zeros(texts, 3, device=like.device), ids.reshape(rows * columns, 3)])
