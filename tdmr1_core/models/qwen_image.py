"""Qwen-Image and Qwen-Image-2512 as a Backbone: any QwenImagePipeline.

The pipeline rescales the guided velocity to the norm of the conditional one, token by token. Samples of the teacher
follow it. The guided scores of the losses do not: they are gradients of log densities, where uncond + s (cond - uncond)
is that of p(x) (p(x|c) / p(x))^s, and a norm that depends on x has no such meaning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tdmr1_core.algorithm.flow import guide
from tdmr1_core.models.families import FAMILIES
from tdmr1_core.models.packed import VideoAutoencoderBackbone, pack, unpack
from tdmr1_core.models.pipeline import TIMESTEP_SCALE
from tdmr1_core.records import Conditioning


class QwenImageBackbone(VideoAutoencoderBackbone):
    """A QwenImagePipeline. Its network returns v = eps - x_0 at time sigma; there is no pooled embedding (P = 0)."""

    family = FAMILIES["qwen_image"]

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts to token embeddings (B, L, D), padded to the longest."""
        embeddings, mask = self.pipeline.encode_prompt(
            list(prompts), device=self.device, max_sequence_length=self._max_sequence_length
        )
        if mask is None:  # no prompt has padding
            mask = embeddings.new_ones(embeddings.shape[:2])
        lengths = mask.sum(1).to(torch.int64).cpu()
        return Conditioning(embeddings, embeddings.new_empty(len(prompts), 0), lengths)

    def call_arguments(self, conditioning: Conditioning) -> dict[str, Any]:
        """The embeddings and their mask as arguments of the pipeline."""
        mask = conditioning.token_mask
        return {
            "prompt_embeds": conditioning.embeddings.to(self.dtype),
            "prompt_embeds_mask": None if mask is None else mask.long(),
        }

    @staticmethod
    def text_widths(denoiser: Mapping[str, Any]) -> tuple[int, int]:
        """D and P = 0, from the config of the denoiser."""
        return denoiser["joint_attention_dim"], 0

    def _pipeline_guide(self, conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
        tokens, guided = pack(conditional), pack(guide(conditional, unconditional, scale))
        rescaled = guided * (tokens.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))
        return unpack(rescaled, *conditional.shape[2:])

    def _network_velocity(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        batch, _, height, width = latents.shape
        tokens = self.network(
            hidden_states=pack(latents).to(self._precision),
            timestep=(sigma * TIMESTEP_SCALE).to(latents) / TIMESTEP_SCALE,
            encoder_hidden_states=conditioning.embeddings.to(self._precision),
            encoder_hidden_states_mask=conditioning.token_mask,
            img_shapes=[[(1, height // 2, width // 2)]] * batch,
            return_dict=False,
        )[0]
        return unpack(tokens, height, width)
