"""The Backbone implementation that the families share: freezing, guidance, decoding and schedules of a pipeline."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn

from tdmr1_core.algorithm.flow import Levels, guide, sigma_schedule, stretch, unshift_sigma
from tdmr1_core.models.families import Family
from tdmr1_core.models.latent_shape import LatentGrid, latent_grid
from tdmr1_core.models.noise_levels import NoiseSchedule, is_static, pipeline_schedule
from tdmr1_core.models.pipeline_files import INDEX, read_config
from tdmr1_core.models.prompt_lengths import Reader, readers_of
from tdmr1_core.records import Conditioning

TIMESTEP_SCALE = 1000
"""The timestep of diffusers is 1000 sigma."""
EXACT_LEVELS = {"use_dynamic_shifting": False, "shift": 1.0, "shift_terminal": None}
"""Settings of a scheduler that uses the noise levels that it gets without a change."""


class SamplingCall(NamedTuple):
    """How a pipeline of diffusers samples: the arguments of its call, and changes of its scheduler's config."""

    arguments: dict[str, Any]
    scheduler: dict[str, Any]

    def prepare(self, pipeline: Any) -> None:
        """Change the scheduler of a pipeline."""
        if self.scheduler:
            kind = type(pipeline.scheduler)
            pipeline.scheduler = kind.from_config(pipeline.scheduler.config, **self.scheduler)


class PipelineBackbone(ABC):
    """A frozen diffusers pipeline as a Backbone. Subclasses encode the prompts and call the network."""

    family: ClassVar[Family]

    def __init__(
        self,
        pipeline: Any,
        *,
        device: torch.device,
        precision: torch.dtype,
        max_sequence_length: int,
        encoders_on_cpu: bool = False,
        denoiser_on_cpu: bool = False,
    ) -> None:
        self.pipeline = pipeline
        self.network: nn.Module = pipeline.transformer
        self.device = device
        self.dtype = torch.promote_types(precision, torch.float32)
        self.attention: Callable[[], AbstractContextManager[None]] = nullcontext
        self._precision = precision
        self._max_sequence_length = max_sequence_length
        self._encoders_on_cpu = encoders_on_cpu
        self._denoiser_on_cpu = denoiser_on_cpu
        self._base: Self | None = None
        _freeze(pipeline.transformer, self._denoiser_device, precision)
        for encoder in self.text_encoders():
            _freeze(encoder, torch.device("cpu") if encoders_on_cpu else device, precision)
        _freeze(pipeline.vae, device, self.dtype)

    @property
    def _denoiser_device(self) -> torch.device:
        """The device of a newly loaded denoiser: the CPU if it is quantized later."""
        return torch.device("cpu") if self._denoiser_on_cpu else self.device

    def text_encoders(self) -> list[nn.Module]:
        """The text encoders of the pipeline that are loaded."""
        return list(self._named("text_encoder").values())

    def tokenizers(self) -> list[Any]:
        """The tokenizers of the pipeline that are loaded."""
        return list(self._named("tokenizer").values())

    def readers(self) -> tuple[Reader, ...]:
        """How much of a prompt each text encoder reads."""
        return readers_of(self.family, self._named("tokenizer"), self._max_sequence_length)

    def _named(self, kind: str) -> dict[str, Any]:
        """The parts of the pipeline named `kind`, `kind`_2 and `kind`_3 that are loaded, by name."""
        found = {name: getattr(self.pipeline, name, None) for name in (kind, f"{kind}_2", f"{kind}_3")}
        return {name: part for name, part in found.items() if part is not None}

    @abstractmethod
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts with the encoders of the pipeline, one row each."""

    def call_arguments(self, conditioning: Conditioning) -> dict[str, Any]:
        """The conditioning as arguments of a call of the pipeline, in the dtype of latents."""
        arguments = {"prompt_embeds": conditioning.embeddings.to(self.dtype)}
        if conditioning.pooled.shape[1]:
            arguments["pooled_prompt_embeds"] = conditioning.pooled.to(self.dtype)
        return arguments

    @staticmethod
    @abstractmethod
    def text_widths(denoiser: Mapping[str, Any]) -> tuple[int, int]:
        """The widths D and P of the token and pooled embeddings that a denoiser takes, from its config."""

    @abstractmethod
    def _network_velocity(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """v (B, C, H, W) from one forward pass of the network."""

    @cached_property
    def unconditional(self) -> Conditioning:
        """The conditioning of the empty prompt, one row."""
        return self.encode([""]) if self._base is None else self._base.unconditional

    def velocity(
        self,
        latents: Tensor,
        sigma: Tensor,
        conditioning: Conditioning,
        guidance_scale: float = 1.0,
        *,
        as_pipeline: bool = False,
    ) -> Tensor:
        """v (B, C, H, W). With guidance, both branches are evaluated in one batch (2B, C, H, W)."""
        if guidance_scale == 1.0:
            return self._forward(latents, sigma, conditioning)
        both = Conditioning.cat([self.unconditional.expand(len(latents)), conditioning])
        unconditional, conditional = self._forward(latents.repeat(2, 1, 1, 1), sigma.repeat(2), both).chunk(2)
        combine = self._pipeline_guide if as_pipeline else guide
        return combine(conditional, unconditional, guidance_scale)

    def _pipeline_guide(self, conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
        """The guided velocity (B, C, H, W) with which the pipeline samples."""
        return guide(conditional, unconditional, scale)

    def _forward(self, latents: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        lowered = torch.autocast(self.device.type, self._precision, enabled=self._precision == torch.bfloat16)
        with self.attention(), lowered:
            return self._network_velocity(latents, sigma, conditioning).to(self.dtype)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> np.ndarray:
        """Decode clean latents (B, C, H, W) to images, uint8 (B, height, width, 3), exactly as the pipeline does."""
        pixels = self._decode(latents)
        images = self.pipeline.image_processor.postprocess(pixels, output_type="np")  # (B, height, width, 3) in [0, 1]
        return (images * 255).round().astype(np.uint8)

    def _decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, H, W) to pixels (B, 3, height, width) in [-1, 1]."""
        config = self.pipeline.vae.config
        pixels: Tensor = self.pipeline.vae.decode(
            latents / config.scaling_factor + config.shift_factor, return_dict=False
        )[0]
        return pixels

    def pipeline_latents(self, latents: Tensor) -> Tensor:
        """Latents (B, C, H, W) as the argument `latents` of the pipeline."""
        return latents

    @property
    def latent_grid(self) -> LatentGrid:
        """Channels, pixels and patches of the latents."""
        return latent_grid(self.family, self.pipeline.transformer.config, self._latent_pixels)

    @property
    def _latent_pixels(self) -> int:
        """Pixels in a latent of the autoencoder, along each axis."""
        return int(self.pipeline.vae_scale_factor)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """The shape (C, H, W) of the latents of an image in pixels. Raises Tdmr1Error for a size that does not fit."""
        return self.latent_grid.shape(height, width)

    @property
    def has_static_levels(self) -> bool:
        """Whether the noise levels of the scheduler depend on its shift only."""
        return is_static(self.pipeline.scheduler.config)

    def noise_schedule(self, size: tuple[int, int], steps: int) -> NoiseSchedule:
        """The schedule of the pipeline for images of `size` (height, width) in pixels and a number of steps."""
        pipeline = self.pipeline
        distilled = bool(getattr(pipeline.config, "is_distilled", False))
        scheduler = dict(pipeline.scheduler.config)
        return pipeline_schedule(self.family, scheduler, self.latent_grid.tokens(*size), steps, distilled=distilled)

    def schedule(self, steps: int, shift: float | NoiseSchedule | None = None, levels: Levels = "euler") -> Tensor:
        """Noise levels (`sigma_schedule`), float64 (K+1,). The default shift is that of the scheduler."""
        found = (
            shift if isinstance(shift, NoiseSchedule) else NoiseSchedule(shift or self.pipeline.scheduler.config.shift)
        )
        sigmas = sigma_schedule(steps, found.shift, levels)
        return sigmas if found.terminal is None else stretch(sigmas, found.terminal)

    def check_levels(self, sigmas: Tensor) -> None:  # noqa: B027
        """Raise Tdmr1Error if the pipeline cannot sample along these noise levels (K+1,). Most take any."""

    def sampling_call(self, sigmas: Tensor, size: tuple[int, int], max_sequence_length: int) -> SamplingCall:
        """How the pipeline samples along `sigmas` (K+1,), without guidance, images of `size` (height, width)."""
        arguments: dict[str, Any] = {
            self.family.guidance_argument: self.family.no_guidance,
            "height": size[0],
            "width": size[1],
        }
        if self.family.takes_length:
            arguments["max_sequence_length"] = max_sequence_length
        arguments |= self.family.call_arguments
        scheduler = self.pipeline.scheduler.config
        if self.has_static_levels:  # the scheduler applies its shift to the levels that it gets
            return SamplingCall({"sigmas": unshift_sigma(sigmas[:-1], scheduler.shift).tolist(), **arguments}, {})
        return SamplingCall({"sigmas": sigmas[:-1].tolist(), **arguments}, EXACT_LEVELS)

    @contextmanager
    def exact(self) -> Iterator[None]:
        """Within the context the network computes in the dtype of latents; its weights are cast from their values."""
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

    def with_other_denoiser(self, folder: Path) -> Self:
        """A second backbone: denoiser, scheduler and settings of the pipeline in `folder`.

        All other parts, such as text encoders and autoencoder, are those of this one.
        """
        other = type(self)(
            self.pipeline_with_denoiser(folder),
            device=self.device,
            precision=self._precision,
            max_sequence_length=self._max_sequence_length,
            encoders_on_cpu=self._encoders_on_cpu,
            denoiser_on_cpu=self._denoiser_on_cpu,
        )
        other._base = self
        return other

    def pipeline_with_denoiser(self, folder: Path) -> Any:
        """A pipeline with denoiser, scheduler and settings of the pipeline in `folder`, and all other parts of this."""
        kind = self.family.find_class(self.family.transformer)
        fresh = kind.from_pretrained(folder / "transformer", torch_dtype=self._precision, use_safetensors=True)
        scheduler = type(self.pipeline.scheduler).from_pretrained(folder / "scheduler")
        index = read_config(str(folder), INDEX)
        settings = {name: value for name, value in index.items() if not name.startswith("_") and not _is_part(value)}
        changed = {"transformer": fresh.to(self._denoiser_device), "scheduler": scheduler}
        pipeline = type(self.pipeline)(**{**self.pipeline.components, **settings, **changed})
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def _is_part(value: Any) -> bool:
    """Whether a value of model_index.json names the library and the class of a part."""
    return isinstance(value, list) and len(value) == 2 and all(each is None or isinstance(each, str) for each in value)


def _freeze(part: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Disable gradients, switch to evaluation mode, and move a network to a device and dtype.

    Layers that diffusers keeps in float32, such as the norms of Krea 2, and buffers, such as rotary frequencies, keep
    their precision if it is higher.
    """
    part.requires_grad_(False).eval().to(device)
    kept = set(getattr(part, "_keep_in_fp32_modules", None) or ())
    for name, weight in part.named_parameters():
        wanted = torch.promote_types(dtype, torch.float32) if kept & set(name.split(".")) else dtype
        if weight.dtype != wanted:
            weight.data = weight.data.to(wanted)
    for buffer in part.buffers():
        if buffer.is_floating_point():
            buffer.data = buffer.data.to(torch.promote_types(buffer.dtype, dtype))


def load_pipeline(family: Family, folder: Path, precision: torch.dtype, absent: Sequence[str] = ()) -> Any:
    """Load a pipeline from a directory, from safetensors files only, without the parts named `absent`.

    Weights are read in `precision`, those of the autoencoder at least in float32.
    """
    dtypes = {"default": precision, "vae": torch.promote_types(precision, torch.float32)}
    pipeline = family.find_class(family.pipeline).from_pretrained(
        folder, torch_dtype=dtypes, use_safetensors=True, **dict.fromkeys(absent)
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
