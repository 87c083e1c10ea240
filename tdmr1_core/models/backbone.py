"""What the engine asks of a model family. Sign and time conventions of each model are converted behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from tdmr1_core.records import Conditioning


class Backbone(Protocol):
    """A frozen text-to-image model in rectified-flow terms: v = eps - x_0, sigma 1 is noise and 0 the picture."""

    network: nn.Module
    """The denoiser that LoRAs are put on."""
    device: torch.device
    dtype: torch.dtype
    """Of latents handed to and given by the methods below: at least float32."""

    def text_encoders(self) -> list[nn.Module]:
        """The networks that `encode` asks."""

    def tokenizers(self) -> list[Any]:
        """What `encode` takes texts apart with, as transformers has it."""

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Prompts to conditioning, one row each."""

    @property
    def unconditional(self) -> Conditioning:
        """The conditioning of the empty prompt, one row."""

    def velocity(
        self, latents: Tensor, sigma: Tensor, conditioning: Conditioning, guidance_scale: float = 1.0
    ) -> Tensor:
        """v (B, C, H, W) at noise levels `sigma` (B,); a guidance scale other than 1 mixes in the empty prompt."""

    def decode(self, latents: Tensor) -> np.ndarray:
        """Clean latents (B, C, H, W) to pictures, uint8 (B, height, width, 3)."""

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, H, W) of the latents of a picture."""

    def schedule(self, steps: int, shift: float | None = None) -> Tensor:
        """The K + 1 noise levels of a K-step schedule, float64 (K+1,) from 1 to 0."""


def velocities(backbone: Backbone, queries: Sequence[tuple[Tensor, Tensor, Conditioning]]) -> list[Tensor]:
    """Several questions (latents, sigma, conditioning) to the acting role in one forward pass."""
    latents, sigmas, conditionings = zip(*queries, strict=True)
    answer = backbone.velocity(torch.cat(latents), torch.cat(sigmas), Conditioning.cat(conditionings))
    return list(answer.split([len(part) for part in latents]))
