"""The supported model families and their differences. Imports neither torch nor diffusers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

JOINT_ATTENTION = (
    "attn.to_q",
    "attn.to_k",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_q_proj",
    "attn.add_k_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
)
"""The published LoRA targets of SD3 and SD3.5. The prefix excludes `attn2`, which a bare `to_q` would match."""

ATTENTION = ("attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0")
"""The published LoRA targets of Z-Image, without `add_*_proj`: the published config names them, but it has none."""


@dataclass(frozen=True)
class Family:
    """A family: one pipeline class of diffusers and its adapter."""

    name: str
    pipeline: str
    """The pipeline class in diffusers, as in `model_index.json`."""
    transformer: str
    """The class of the denoiser in diffusers."""
    backbone: str
    """`module:class` of the Backbone implementation."""
    targets: tuple[str, ...]
    """The default LoRA target modules."""
    max_sequence_length: int
    """The default number of tokens per prompt of the pipeline."""
    no_guidance: float
    """The `guidance_scale` argument of the pipeline that disables guidance."""
    comfy_prefix: str
    """The prefix that ComfyUI puts before the module names of diffusers in LoRA files of this family."""


FAMILIES = {
    "sd3": Family(
        name="sd3",
        pipeline="StableDiffusion3Pipeline",
        transformer="SD3Transformer2DModel",
        backbone="tdmr1_core.models.sd3:SD3Backbone",
        targets=JOINT_ATTENTION,
        max_sequence_length=256,
        no_guidance=1.0,
        comfy_prefix="transformer.",
    ),
    "zimage": Family(
        name="zimage",
        pipeline="ZImagePipeline",
        transformer="ZImageTransformer2DModel",
        backbone="tdmr1_core.models.zimage:ZImageBackbone",
        targets=ATTENTION,
        max_sequence_length=512,
        no_guidance=0.0,
        comfy_prefix="diffusion_model.",
    ),
}
"""The supported families, by name."""

PIPELINES = {family.pipeline: family for family in FAMILIES.values()}
"""The supported families, by pipeline class."""


def positions(denoiser: Mapping[str, Any]) -> float:
    """The number of patches in one direction that the network has positions for; infinity if the config has no limit.

    SD3 has a table of positions, Z-Image has the lengths of its axes (text, height, width).
    """
    limits = (denoiser.get("pos_embed_max_size"), *(denoiser.get("axes_lens") or ())[1:])
    return min((limit for limit in limits if limit), default=math.inf)
