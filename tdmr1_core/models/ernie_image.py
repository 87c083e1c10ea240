"""ERNIE-Image and ERNIE-Image-Turbo as a Backbone: any ErnieImagePipeline.

The pipeline has a language model that rewrites prompts, which is not loaded: a reward scores the prompt as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tdmr1_core.algorithm.flow import sigma_schedule
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.families import FAMILIES
from tdmr1_core.models.patchified import PatchifiedBackbone
from tdmr1_core.models.pipeline import EXACT_LEVELS, TIMESTEP_SCALE, SamplingCall
from tdmr1_core.records import Conditioning

SAME_LEVEL = 1e-6
NORM_EPSILON = 1e-5
"""epsilon of the batch norm, which the pipeline has in its code; the published config has another value."""


class ErnieImageBackbone(PatchifiedBackbone):
    """An ErnieImagePipeline. Its network returns v = eps - x_0 at timestep 1000 sigma; P = 0."""

    family = FAMILIES["ernie_image"]

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts to token embeddings (B, L, D), padded to the longest."""
        texts = self.pipeline.encode_prompt(list(prompts), self.device)
        rows = [Conditioning(text[None], text.new_empty(1, 0), torch.tensor([len(text)])) for text in texts]
        return Conditioning.cat(rows)

    def call_arguments(self, conditioning: Conditioning) -> dict[str, Any]:
        """The embeddings as arguments of the pipeline."""
        return {"prompt_embeds": [text.to(self.dtype) for text in conditioning.texts]}

    @staticmethod
    def text_widths(denoiser: Mapping[str, Any]) -> tuple[int, int]:
        """D and P = 0, from the config of the denoiser."""
        return denoiser["text_in_dim"], 0

    @property
    def _norm_epsilon(self) -> float:
        return NORM_EPSILON

    @property
    def _latent_pixels(self) -> int:
        return int(self.pipeline.vae_scale_factor) // 2  # the pipeline counts the pixels of 2 x 2 latents

    def sampling_call(self, sigmas: Tensor, size: tuple[int, int], max_sequence_length: int) -> SamplingCall:
        """As for other pipelines; this one takes a number of steps and no levels, so its scheduler gets the shift."""
        call = super().sampling_call(sigmas, size, max_sequence_length)
        arguments = {name: value for name, value in call.arguments.items() if name != "sigmas"}
        steps = {"num_inference_steps": len(sigmas) - 1}
        return SamplingCall({**steps, **arguments}, {**EXACT_LEVELS, "shift": _shift_of(sigmas)})

    def check_levels(self, sigmas: Tensor) -> None:
        """Raise Tdmr1Error unless the levels are S(1 - k / K): the pipeline takes a number of steps only."""
        possible = sigma_schedule(len(sigmas) - 1, _shift_of(sigmas))
        if not torch.allclose(sigmas.to(possible), possible, rtol=0, atol=SAME_LEVEL):
            raise Tdmr1Error(
                f"the noise levels {', '.join(f'{level:.4g}' for level in sigmas.tolist())} cannot be given to the "
                "pipeline of ERNIE-Image, which takes a number of steps only",
                "set rollout.shift instead of rollout.sigmas, and rollout.dpm_levels to euler",
                code="setting-conflict",
                values={"sigmas": sigmas.tolist(), "pipeline": self.family.pipeline},
            )

    def _network_velocity(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        velocity: Tensor = self.network(
            hidden_states=latents.to(self._precision),
            timestep=(sigma * TIMESTEP_SCALE).to(latents),
            text_bth=conditioning.embeddings.to(self._precision),
            text_lens=conditioning.token_counts,
            return_dict=False,
        )[0]
        return velocity


def _shift_of(sigmas: Tensor) -> float:
    """s of levels (K+1,) that are S(u) = s u / (1 + (s - 1) u) at u = 1 - k / K, from the level of the first step."""
    steps = len(sigmas) - 1
    if steps == 1:
        return 1.0
    u, sigma = 1 - 1 / steps, float(sigmas[1])
    return sigma * (1 - u) / (u * (1 - sigma))
