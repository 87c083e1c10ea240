"""Z-Image and Z-Image-Turbo as a Backbone: any ZImagePipeline.

The network takes lists of latents and text embeddings. Its time is t = 1 - sigma (0 is noise, 1 is the image), and its
output is x_0 - eps = -v.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tdmr1_core.models.families import FAMILIES
from tdmr1_core.models.pipeline import TIMESTEP_SCALE, PipelineBackbone
from tdmr1_core.records import Conditioning


class ZImageBackbone(PipelineBackbone):
    """A ZImagePipeline. Prompts keep their own token counts; there is no pooled embedding (P = 0)."""

    family = FAMILIES["zimage"]

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts to token embeddings (B, L, D), padded to the longest."""
        texts, _ = self.pipeline.encode_prompt(
            list(prompts),  # a copy, because the pipeline modifies it
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self._max_sequence_length,
        )
        rows = [Conditioning(text[None], text.new_empty(1, 0), torch.tensor([len(text)])) for text in texts]
        return Conditioning.cat(rows)

    def call_arguments(self, conditioning: Conditioning) -> dict[str, Any]:
        """The embeddings as arguments of the pipeline."""
        return {"prompt_embeds": [text.to(self.dtype) for text in conditioning.texts]}

    @staticmethod
    def text_widths(denoiser: Mapping[str, Any]) -> tuple[int, int]:
        """D and P = 0, from the config of the denoiser."""
        return denoiser["cap_feat_dim"], 0

    def _network_velocity(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        images = list(latents.to(self._precision).unsqueeze(2).unbind())  # (C, 1, H, W) each
        time = (TIMESTEP_SCALE - (sigma * TIMESTEP_SCALE).to(latents)) / TIMESTEP_SCALE
        texts = [text.to(self._precision) for text in conditioning.texts]
        outputs = self.network(images, time, texts, return_dict=False)[0]  # (C, 1, H, W) each
        return -torch.stack([output.to(self.dtype) for output in outputs]).squeeze(2)  # (B, C, H, W)
