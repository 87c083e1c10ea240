"""The model families: which pipeline of diffusers each is, and what differs between them. Nothing heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass

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
"""The published LoRA targets of SD3 and SD3.5; never `attn2`, which a bare `to_q` would match too."""

ATTENTION = ("attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0")
"""The published LoRA targets of Z-Image; it has none of the `add_*_proj` that the published config names as well."""


@dataclass(frozen=True)
class Family:
    """One kind of pipeline."""

    name: str
    pipeline: str
    """Its class in diffusers, which `model_index.json` names."""
    transformer: str
    """The class of its denoiser in diffusers."""
    backbone: str
    """`module:class` of its adapter to the Backbone protocol."""
    targets: tuple[str, ...]
    """The modules that LoRAs are put on where nothing else says so."""
    max_sequence_length: int
    """Tokens of a text, as the pipeline has them by default."""
    no_guidance: float
    """The `guidance_scale` of a call of the pipeline that means none."""
    comfy_prefix: str
    """What ComfyUI has before diffusers' module names in LoRA files of this family."""


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
"""The supported families by name."""

PIPELINES = {family.pipeline: family for family in FAMILIES.values()}
"""The same by the class name that a `model_index.json` holds."""
