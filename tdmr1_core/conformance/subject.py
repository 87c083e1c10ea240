"""A pipeline under test: our Backbone of it, and fresh pipelines of diffusers to compare it with."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tdmr1_core.models.families import FAMILIES, Family
from tdmr1_core.models.loading import backbone_class
from tdmr1_core.models.pipeline import PipelineBackbone, load_pipeline
from tdmr1_core.models.pipeline_files import absent_parts
from tdmr1_core.models.registry import ModelEntry, entry_of_pipeline
from tdmr1_core.planning.published_configs import PUBLISHED
from tdmr1_core.stages.sampling import sample

PROMPTS = ("a red circle", "three blue squares on a green hill, and a small yellow star above them")
"""Prompts of different lengths."""
LENGTH = 96
"""Tokens of a prompt for a tiny pipeline, whose texts are short."""


class Mismatch(Exception):
    """What a check found, in words."""


class NotApplicable(Exception):
    """Why a check cannot be made, in words."""


@dataclass(frozen=True)
class Subject:
    """A pipeline directory with its family, and the image sizes (height, width) that are sampled, in pixels."""

    folder: Path
    entry: ModelEntry
    sizes: tuple[tuple[int, int], tuple[int, int]]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    is_tiny: bool = False

    @classmethod
    def tiny(cls, folder: Path) -> Subject:
        """The tiny pipeline in a directory, which samples images of 64 x 64 and 64 x 96 pixels."""
        entry = entry_of_pipeline(str(folder))
        length = min(entry.max_sequence_length, LENGTH)
        return cls(folder, replace(entry, max_sequence_length=length), ((64, 64), (64, 96)), is_tiny=True)

    @property
    def family(self) -> Family:
        """The family of the pipeline."""
        return FAMILIES[self.entry.family]

    @property
    def published(self) -> str | None:
        """A base of this family whose published configs are built in: that of the entry, otherwise any."""
        if self.entry.base in PUBLISHED:
            return self.entry.base
        kinds = {name: configs["model_index.json"]["_class_name"] for name, configs in PUBLISHED.items()}
        return next((name for name, kind in kinds.items() if kind == self.family.pipeline), None)

    @cached_property
    def backbone(self) -> PipelineBackbone:
        """Our Backbone of the pipeline, in float32."""
        return backbone_class(self.family)(
            self.load(),
            device=self.device,
            precision=torch.float32,
            max_sequence_length=self.entry.max_sequence_length,
        )

    def load(self) -> Any:
        """The pipeline, read from its directory."""
        absent = absent_parts(str(self.folder), self.family, with_t5=self.entry.with_t5)
        return load_pipeline(self.family, self.folder, torch.float32, absent).to(self.device)

    def fresh(self) -> Any:
        """A pipeline of diffusers with the parts of the backbone, and a scheduler and settings of its own."""
        former = self.backbone.pipeline
        scheduler = type(former.scheduler).from_config(former.scheduler.config)
        settings = {name: value for name, value in former.config.items() if name not in former.components}
        settings = {name: value for name, value in settings.items() if not name.startswith("_")}
        pipeline = type(former)(**{**former.components, **settings, "scheduler": scheduler})
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def noise(self, size: tuple[int, int], count: int = 2) -> Tensor:
        """Noise (count, C, H, W) for images of this size, always the same."""
        generator = torch.Generator().manual_seed(0)
        shape = self.backbone.latent_shape(*size)
        return torch.randn(count, *shape, generator=generator).to(self.device, self.backbone.dtype)

    def sigmas(self, size: tuple[int, int], steps: int) -> Tensor:
        """Our noise levels (K+1,)."""
        shift = self.entry.shift
        return self.backbone.schedule(steps, self.backbone.noise_schedule(size, steps) if shift is None else shift)

    @torch.no_grad()
    def ours(self, size: tuple[int, int], steps: int, guidance_scale: float) -> np.ndarray:
        """Images that our engine samples, one per prompt, uint8 (2, height, width, 3)."""
        backbone, texts = self.backbone, self.backbone.encode(list(PROMPTS))
        sigmas = self.sigmas(size, steps)
        return backbone.decode(sample(backbone, self.noise(size), texts, sigmas, guidance_scale=guidance_scale)[-1])

    @torch.no_grad()
    def theirs(self, size: tuple[int, int], steps: int, guidance_scale: float, **changes: Any) -> Any:
        """What the pipeline returns for the same prompts, noise, levels and guidance: images (2, height, width, 3)."""
        pipeline, backbone = self.fresh(), self.backbone
        call = backbone.sampling_call(self.sigmas(size, steps), size, self.entry.max_sequence_length)
        call.prepare(pipeline)
        arguments = {**call.arguments, self.family.guidance_argument: self.family.scale_of_pipeline(guidance_scale)}
        if guidance_scale != 1.0:
            if getattr(pipeline.config, "is_distilled", False):  # its undistilled base has guidance
                pipeline.register_to_config(is_distilled=False)
            if "negative_prompt" in _parameters(pipeline):
                arguments["negative_prompt"] = [""] * len(PROMPTS)
        latents = backbone.pipeline_latents(self.noise(size))
        return pipeline(prompt=list(PROMPTS), latents=latents, **{**arguments, "output_type": "np", **changes}).images


def _parameters(pipeline: Any) -> set[str]:
    """The names of the arguments of a pipeline's call."""
    import inspect

    return set(inspect.signature(type(pipeline).__call__).parameters)


def largest_difference(images: np.ndarray, expected: np.ndarray) -> int:
    """The largest difference of pixel values: uint8 images and expected floats in [0, 1], (B, height, width, 3)."""
    return int(np.abs((expected * 255).round().astype(int) - images.astype(int)).max())
