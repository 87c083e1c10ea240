"""The interface of a model family. Each family converts the sign and time conventions of its network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from tdmr1_core.algorithm.flow import Levels
from tdmr1_core.models.noise_levels import NoiseSchedule
from tdmr1_core.models.prompt_lengths import Reader
from tdmr1_core.records import Conditioning

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}
"""The dtypes of frozen weights, by the names of `model.precision`."""


class Backbone(Protocol):
    """A frozen text-to-image model as a rectified flow: v = eps - x_0; sigma = 1 is noise, sigma = 0 is the image."""

    network: nn.Module
    """The denoiser, to which LoRAs are added."""
    device: torch.device
    dtype: torch.dtype
    """The dtype of latents and velocities: float32 or float64."""
    attention: Callable[[], AbstractContextManager[None]]
    """The context of each forward pass of `network`, which selects the kernel of attention."""

    def text_encoders(self) -> list[nn.Module]:
        """The networks that `encode` uses."""

    def tokenizers(self) -> list[Any]:
        """The tokenizers of transformers that `encode` uses."""

    def readers(self) -> tuple[Reader, ...]:
        """How much of a prompt each text encoder reads."""

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts, one row each."""

    @property
    def unconditional(self) -> Conditioning:
        """The conditioning of the empty prompt, one row."""

    def velocity(
        self,
        latents: Tensor,
        sigma: Tensor,
        conditioning: Conditioning,
        guidance_scale: float = 1.0,
        *,
        as_pipeline: bool = False,
    ) -> Tensor:
        """v (B, C, H, W) of latents (B, C, H, W) at noise levels `sigma` (B,).

        A guidance scale other than 1 applies classifier-free guidance with the empty prompt, uncond + s (cond -
        uncond). With `as_pipeline` it is applied as the pipeline does, for samples that equal those of the pipeline.
        """

    def decode(self, latents: Tensor) -> np.ndarray:
        """Decode clean latents (B, C, H, W) to images, uint8 (B, height, width, 3)."""

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """The shape (C, H, W) of the latents of an image of this size in pixels."""

    @property
    def has_static_levels(self) -> bool:
        """Whether the noise levels of the pipeline depend on a shift only, not on the image size."""

    def noise_schedule(self, size: tuple[int, int], steps: int) -> NoiseSchedule:
        """The schedule of the pipeline for images of `size` (height, width) in pixels and a number of steps."""

    def check_levels(self, sigmas: Tensor) -> None:
        """Raise Tdmr1Error if the pipeline cannot sample along these noise levels (K+1,)."""

    def schedule(self, steps: int, shift: float | NoiseSchedule | None = None, levels: Levels = "euler") -> Tensor:
        """Noise levels of a K-step schedule (`sigma_schedule`), float64 (K+1,), decreasing to 0."""


def velocities(backbone: Backbone, inputs: Sequence[tuple[Tensor, Tensor, Conditioning]]) -> list[Tensor]:
    """Evaluate several inputs (latents, sigma, conditioning) in one forward pass. One (B, C, H, W) per input."""
    latents, sigmas, conditionings = zip(*inputs, strict=True)
    velocity = backbone.velocity(torch.cat(latents), torch.cat(sigmas), Conditioning.cat(conditionings))
    return list(velocity.split([len(part) for part in latents]))
