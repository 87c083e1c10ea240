"""Z-Image and Z-Image-Turbo behind the Backbone protocol: any ZImagePipeline.

Its network takes lists of pictures and texts, counts time from 0 (noise) to 1 (picture) and points from noise to
picture: t = 1 - sigma, and v is its answer's negative.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tdmr1_core.models.families import FAMILIES
from tdmr1_core.models.pipeline import TIMESTEPS, PipelineBackbone
from tdmr1_core.records import Conditioning


class ZImageBackbone(PipelineBackbone):
    """A ZImagePipeline's parts. Texts keep their own lengths; there is no pooled embedding."""

    family = FAMILIES["zimage"]

    def text_encoders(self) -> list[nn.Module]:
        """The only one, if it is there."""
        return [self.pipeline.text_encoder] if self.pipeline.text_encoder is not None else []

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Prompts to token embeddings, padded to the longest."""
        texts, _ = self.pipeline.encode_prompt(
            list(prompts),  # it writes into the list
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self._max_sequence_length,
        )
        rows = [Conditioning(text[None], text.new_empty(1, 0), torch.tensor([len(text)])) for text in texts]
        return Conditioning.cat(rows)

    def call_arguments(self, conditioning: Conditioning) -> dict[str, Any]:
        """The texts as the pipeline takes them."""
        return {"prompt_embeds": [text.to(self.dtype) for text in _texts(conditioning)]}

    def _network_velocity(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        pictures = list(latents.to(self._precision).unsqueeze(2).unbind())  # (C, 1, H, W) each
        time = (TIMESTEPS - (sigma * TIMESTEPS).to(latents)) / TIMESTEPS
        texts = [text.to(self._precision) for text in _texts(conditioning)]
        answers = self.network(pictures, time, texts, return_dict=False)[0]
        return -torch.stack([answer.to(self.dtype) for answer in answers]).squeeze(2)

    @property
    def _patch_size(self) -> int:
        return 2


def _texts(conditioning: Conditioning) -> list[Tensor]:
    """The embeddings of each text without padding, (length, D)."""
    if conditioning.lengths is None:
        return list(conditioning.embeddings)
    rows = zip(conditioning.embeddings, conditioning.lengths.tolist(), strict=True)
    return [embeddings[:length] for embeddings, length in rows]
