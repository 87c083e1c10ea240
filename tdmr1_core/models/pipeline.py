"""What the backbones made of a diffusers pipeline share: freezing, guidance, decoding, schedule."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from tdmr1_core.algorithm.flow import guide, sigma_schedule
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.families import Family
from tdmr1_core.records import Conditioning

TIMESTEPS = 1000
"""Diffusers' flow schedulers count sigma in thousandths."""
TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")
"""What pipelines call theirs."""


class PipelineBackbone(ABC):
    """A pipeline's parts, frozen, in rectified-flow terms. A family says how it encodes and what its network wants."""

    family: ClassVar[Family]

    def __init__(
        self,
        pipeline: Any,
        *,
        device: torch.device,
        precision: torch.dtype,
        max_sequence_length: int,
        encoders_leave: bool = False,
        denoiser_waits: bool = False,
    ) -> None:
        self.pipeline = pipeline
        self.network: nn.Module = pipeline.transformer
        self.device = device
        self.dtype = torch.promote_types(precision, torch.float32)
        self._precision = precision
        self._max_sequence_length = max_sequence_length
        self._encoders_leave = encoders_leave
        self._denoiser_waits = denoiser_waits
        self._first: Self | None = None
        _freeze(pipeline.transformer, self._denoiser_starts, precision)
        for encoder in self.text_encoders():
            _freeze(encoder, torch.device("cpu") if encoders_leave else device, precision)
        _freeze(pipeline.vae, device, self.dtype)

    @property
    def _denoiser_starts(self) -> torch.device:
        """Where a denoiser is put that was read from disk: on the CPU while it waits to be quantised."""
        return torch.device("cpu") if self._denoiser_waits else self.device

    @abstractmethod
    def text_encoders(self) -> list[nn.Module]:
        """Those of the pipeline's text encoders that are there."""

    def tokenizers(self) -> list[Any]:
        """Those of the pipeline's tokenizers that are there."""
        found = (getattr(self.pipeline, name, None) for name in TOKENIZERS)
        return [tokenizer for tokenizer in found if tokenizer is not None]

    @abstractmethod
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Prompts to conditioning through the pipeline's own encoders, one row each."""

    @abstractmethod
    def call_arguments(self, conditioning: Conditioning) -> dict[str, Any]:
        """The conditioning as arguments of a call of the pipeline, in the precision of latents."""

    @abstractmethod
    def _network_velocity(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """v as the network gives it."""

    @cached_property
    def unconditional(self) -> Conditioning:
        """The conditioning of the empty prompt, one row."""
        return self.encode([""]) if self._first is None else self._first.unconditional

    def velocity(
        self, latents: Tensor, sigma: Tensor, conditioning: Conditioning, guidance_scale: float = 1.0
    ) -> Tensor:
        """v (B, C, H, W); with guidance both branches run in one batch."""
        if guidance_scale == 1.0:
            return self._forward(latents, sigma, conditioning)
        both = Conditioning.cat([self.unconditional.expand(len(latents)), conditioning])
        unconditional, conditional = self._forward(latents.repeat(2, 1, 1, 1), sigma.repeat(2), both).chunk(2)
        return guide(conditional, unconditional, guidance_scale)

    def _forward(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        with torch.autocast(self.device.type, self._precision, enabled=self._precision == torch.bfloat16):
            return self._network_velocity(latents, sigma, conditioning).to(self.dtype)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> np.ndarray:
        """Clean latents to uint8 (B, height, width, 3), exactly as the pipeline does it."""
        config = self.pipeline.vae.config
        pixels = self.pipeline.vae.decode(latents / config.scaling_factor + config.shift_factor, return_dict=False)[0]
        pictures = self.pipeline.image_processor.postprocess(pixels, output_type="np")
        return (pictures * 255).round().astype(np.uint8)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, H, W) of the latents of a picture in pixels. Raises Tdmr1Error for a size that can't be drawn."""
        channels = int(self.pipeline.transformer.config.in_channels)
        return shape_of_latents(channels, self.pipeline.vae_scale_factor, self._patch_size, height, width)

    @property
    @abstractmethod
    def _patch_size(self) -> int:
        """Latents that the network takes together along each axis."""

    def schedule(self, steps: int, shift: float | None = None) -> Tensor:
        """The K + 1 levels, with the scheduler's own shift unless another is given."""
        return sigma_schedule(steps, shift or self.pipeline.scheduler.config.shift)

    @contextmanager
    def exact(self) -> Iterator[None]:
        """Compute in the precision of latents meanwhile, with the very weights that are held in a lower one."""
        if self._precision == self.dtype:
            yield
            return
        lowered = [weight for weight in self.network.parameters() if weight.dtype == self._precision]
        former, self._precision = self._precision, self.dtype
        try:
            for weight in lowered:
                weight.data = weight.data.to(self.dtype)
            yield
        finally:
            self._precision = former
            for weight in lowered:
                weight.data = weight.data.to(former)

    def beside(self, folder: Path) -> Self:
        """Another denoiser of the same make, read from a pipeline's folder, with this one's other parts."""
        other = type(self)(
            self.with_denoiser(folder),
            device=self.device,
            precision=self._precision,
            max_sequence_length=self._max_sequence_length,
            encoders_leave=self._encoders_leave,
            denoiser_waits=self._denoiser_waits,
        )
        other._first = self
        return other

    def with_denoiser(self, folder: Path) -> Any:
        """A pipeline with a denoiser freshly read from a pipeline's folder and this one's other parts."""
        import diffusers

        kind = getattr(diffusers, self.family.transformer)
        fresh = kind.from_pretrained(folder / "transformer", torch_dtype=self._precision, use_safetensors=True)
        pipeline = type(self.pipeline)(**{**self.pipeline.components, "transformer": fresh.to(self._denoiser_starts)})
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def shape_of_latents(channels: int, pixels: int, patch: int, height: int, width: int) -> tuple[int, int, int]:
    """(C, H, W) of a picture's latents, `pixels` wide each, of which a network takes `patch` together along each axis.

    Raises Tdmr1Error for a size that can't be drawn.
    """
    multiple = pixels * patch
    if height % multiple or width % multiple:
        raise Tdmr1Error(
            f"pictures of {width}×{height} pixels can't be drawn: this model needs multiples of {multiple}",
            "change model.height and model.width",
        )
    return channels, height // pixels, width // pixels


def _freeze(part: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    part.requires_grad_(False).eval().to(device)
    if any(weight.dtype != dtype for weight in part.parameters()):
        part.to(dtype=dtype)


def load_pipeline(family: Family, folder: Path, precision: torch.dtype, absent: Sequence[str] = ()) -> Any:
    """A family's pipeline from a directory, from safetensors alone, without the parts named `absent`.

    Its weights are read in `precision`, those of the autoencoder in at least float32.
    """
    import diffusers

    dtypes = {"default": precision, "vae": torch.promote_types(precision, torch.float32)}
    pipeline = getattr(diffusers, family.pipeline).from_pretrained(
        folder, torch_dtype=dtypes, use_safetensors=True, **dict.fromkeys(absent)
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
