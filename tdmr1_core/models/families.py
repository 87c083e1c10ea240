"""The supported model families and their differences; plugins add further ones. Imports neither torch nor diffusers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from importlib import import_module
from typing import Any, Literal, NamedTuple

from tdmr1_core.errors import Tdmr1Error

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


KLEIN = (
    *JOINT_ATTENTION,
    "attn.to_qkv_mlp_proj",
    *(f"single_transformer_blocks.{number}.attn.to_out" for number in range(48)),
)
"""The attention layers of FLUX.2. In a single block, `to_out` is a plain layer, unlike in a double block.

Therefore it is named with the number of its block. Numbers that a network does not have are ignored.
"""
GATED_ATTENTION = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_gate", "attn.to_out.0")
"""The attention layers of Krea 2, including those that combine the layers of the text encoder."""
SELF_ATTENTION = ("self_attention.to_q", "self_attention.to_k", "self_attention.to_v", "self_attention.to_out.0")
"""The attention layers of ERNIE-Image."""

SCHNELL_LENGTH = 256
"""Tokens of a prompt of FLUX.1-schnell."""


class Layout(StrEnum):
    """How a family stores latents."""

    GRID = "grid"
    """As the autoencoder does: (B, C, H, W). The network divides them into patches."""
    PACKED = "packed"
    """As the autoencoder does here; the pipeline packs 2 x 2 latents into a token: (B, H W / 4, 4 C)."""
    PATCHIFIED = "patchified"
    """2 x 2 latents of the autoencoder are the channels of one latent: (B, 4 C, H / 2, W / 2)."""


class Mu(StrEnum):
    """How a pipeline calculates mu of a scheduler with dynamic shifting; the shift is s = exp(mu)."""

    TOKENS = "tokens"
    """Linear in the number of image tokens, between the scheduler's base_shift and max_shift."""
    TOKENS_AND_STEPS = "tokens and steps"
    """From the number of image tokens and of steps, by the formula of FLUX.2."""
    FIXED_IF_DISTILLED = "fixed if distilled"
    """1.15 if the pipeline is distilled, otherwise as TOKENS."""


class Reads(NamedTuple):
    """How a pipeline reads a prompt with one of its tokenizers."""

    name: str
    """What users call the text encoder."""
    limit: Literal["tokenizer", "length"] = "length"
    """Whether its tokens are limited by the tokenizer or by max_sequence_length."""
    template: Literal["none", "chat", "chat without thinking", "description"] = "none"
    """What surrounds the prompt: nothing, the chat template of the tokenizer, or the template of Qwen-Image."""
    reserved: int = 0
    """Tokens within max_sequence_length that the template puts after the prompt."""


@dataclass(frozen=True)
class Family:
    """A family: one pipeline class of diffusers and its adapter."""

    name: str
    pipeline: str
    """The pipeline class, as in `model_index.json`."""
    transformer: str
    """The class of the denoiser."""
    backbone: str
    """`module:class` of the Backbone implementation."""
    targets: tuple[str, ...]
    """The default LoRA target modules."""
    max_sequence_length: int
    """The default number of tokens per prompt of the pipeline."""
    no_guidance: float
    """The guidance argument of the pipeline that disables guidance. Where it is 0, the pipeline's scale is ours - 1."""
    comfy_prefix: str | None
    """The prefix that ComfyUI puts before the module names of diffusers in LoRA files; None if it has no such names."""
    readers: Mapping[str, Reads]
    """How prompts are read, by the part name of the tokenizer."""
    autoencoder: str = "AutoencoderKL"
    layout: Layout = Layout.GRID
    mu: Mu | None = None
    """None if the pipeline does not support dynamic shifting."""
    guidance_argument: str = "guidance_scale"
    """The argument of the pipeline for classifier-free guidance."""
    takes_sigmas: bool = True
    """Whether a call of the pipeline takes noise levels. Otherwise its scheduler must give them."""
    takes_length: bool = True
    """Whether a call of the pipeline takes max_sequence_length."""
    call_arguments: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of every call of the pipeline."""
    always_distilled: bool = False
    """Whether guidance is distilled into every model of the family."""
    length_without_guidance: int | None = None
    """The default number of tokens of models whose denoiser has no guidance_embeds; None if they do not differ."""
    optional_t5: bool = False
    """Whether the third text encoder, T5, may be missing or omitted."""
    masks_padding: bool = False
    """Whether attention gets a mask where prompts have different lengths. Not every attention kernel takes one."""
    not_loaded: tuple[str, ...] = ()
    """Optional parts of the pipeline that text-to-image sampling does not need."""
    diffusers: str = "0.30"
    """The first release of diffusers that has the pipeline. The package needs 0.35 for all families."""
    module: str = "diffusers"
    """The module that has the classes of pipeline and denoiser."""
    distribution: str = "tdmr1"
    """The Python distribution that registers the family."""

    def scale_of_pipeline(self, guidance_scale: float) -> float:
        """The guidance argument of the pipeline for uncond + s (cond - uncond), where s = 1 means none."""
        return guidance_scale - 1.0 + self.no_guidance

    def find_class(self, name: str) -> Any:
        """The class of pipeline, denoiser or autoencoder. Raises Tdmr1Error if its module lacks it."""
        found = getattr(self._import(self.module), name, None) or getattr(import_module("diffusers"), name, None)
        if found is None and self.module != "diffusers":
            raise self._broken(f"the module {self.module} has no class {name}")
        if found is None:
            from importlib.metadata import version

            installed = version("diffusers")
            raise Tdmr1Error(
                f"diffusers {installed} has no {name}, which models of the family {self.name} need",
                f"install diffusers {self.diffusers} or newer",
                code="dependency-missing",
                values={"package": "diffusers", "installed": installed, "needed": self.diffusers, "class": name},
            )
        return found

    def backbone_class(self) -> Any:
        """The Backbone implementation. Raises Tdmr1Error if that of a plugin cannot be imported."""
        module, _, name = self.backbone.partition(":")
        found = getattr(self._import(module), name, None)
        if found is None:
            raise self._broken(f"the module {module} has no class {name}")
        return found

    def _import(self, module: str) -> Any:
        """A module of the family. Raises Tdmr1Error if that of a plugin cannot be imported."""
        try:
            return import_module(module)
        except Exception as error:
            if self.distribution == "tdmr1":
                raise
            raise self._broken(f"the module {module} cannot be imported: {type(error).__name__}: {error}") from error

    def _broken(self, reason: str) -> Tdmr1Error:
        return Tdmr1Error(
            f"the model family {self.name!r} of {self.distribution} cannot be used: {reason}",
            "install another version of the package, or report this to its authors",
            code="model-invalid",
            values={"family": self.name, "distribution": self.distribution, "reason": reason},
        )


CLIP, T5 = Reads("CLIP", "tokenizer"), Reads("T5")
FAMILIES: dict[str, Family] = {}
"""The supported families, by name."""
PIPELINES: dict[str, Family] = {}
"""The supported families, by pipeline class."""


def add_family(family: Family) -> None:
    """Add a family. Raises Tdmr1Error if another family has its name or its pipeline class."""
    for known in (FAMILIES.get(family.name), PIPELINES.get(family.pipeline)):
        if known is not None:
            raise Tdmr1Error(
                f"the model family {family.name!r} for {family.pipeline} conflicts with {known.name!r} for "
                f"{known.pipeline} of {known.distribution}: a name and a pipeline class can belong to one family only",
                "uninstall one of the packages, or disable it with TDMR1_DISABLE_PLUGINS",
                code="model-invalid",
                values={"family": family.name, "pipeline": family.pipeline, "other": known.name},
            )
    FAMILIES[family.name] = PIPELINES[family.pipeline] = family


def remove_plugin_families() -> None:
    """Remove the families that plugins have added."""
    for family in [family for family in FAMILIES.values() if family.distribution != "tdmr1"]:
        del FAMILIES[family.name], PIPELINES[family.pipeline]


for each in (
    Family(
        name="sd3",
        pipeline="StableDiffusion3Pipeline",
        transformer="SD3Transformer2DModel",
        backbone="tdmr1_core.models.sd3:SD3Backbone",
        targets=JOINT_ATTENTION,
        max_sequence_length=256,
        no_guidance=1.0,
        comfy_prefix="transformer.",
        readers={"tokenizer": CLIP, "tokenizer_2": CLIP, "tokenizer_3": T5},
        diffusers="0.29",
        optional_t5=True,
    ),
    Family(
        name="zimage",
        pipeline="ZImagePipeline",
        transformer="ZImageTransformer2DModel",
        backbone="tdmr1_core.models.zimage:ZImageBackbone",
        targets=ATTENTION,
        max_sequence_length=512,
        no_guidance=0.0,
        comfy_prefix="diffusion_model.",
        readers={"tokenizer": Reads("the text encoder", template="chat")},
        masks_padding=True,
        diffusers="0.36",
    ),
    Family(
        name="flux2_klein",
        pipeline="Flux2KleinPipeline",
        transformer="Flux2Transformer2DModel",
        backbone="tdmr1_core.models.flux2_klein:Flux2KleinBackbone",
        targets=KLEIN,
        max_sequence_length=512,
        no_guidance=1.0,
        comfy_prefix="transformer.",
        readers={"tokenizer": Reads("the text encoder", template="chat without thinking")},
        autoencoder="AutoencoderKLFlux2",
        layout=Layout.PATCHIFIED,
        mu=Mu.TOKENS_AND_STEPS,
        diffusers="0.37",
    ),
    Family(
        name="krea2",
        pipeline="Krea2Pipeline",
        transformer="Krea2Transformer2DModel",
        backbone="tdmr1_core.models.krea2:Krea2Backbone",
        targets=GATED_ATTENTION,
        max_sequence_length=512,
        no_guidance=0.0,
        comfy_prefix="transformer.",
        readers={"tokenizer": Reads("the text encoder", template="description", reserved=5)},
        autoencoder="AutoencoderKLQwenImage",
        layout=Layout.PACKED,
        mu=Mu.FIXED_IF_DISTILLED,
        masks_padding=True,
        diffusers="0.39",
    ),
    Family(
        name="qwen_image",
        pipeline="QwenImagePipeline",
        transformer="QwenImageTransformer2DModel",
        backbone="tdmr1_core.models.qwen_image:QwenImageBackbone",
        targets=JOINT_ATTENTION,
        max_sequence_length=512,
        no_guidance=1.0,
        comfy_prefix="transformer.",
        readers={"tokenizer": Reads("the text encoder", template="description")},
        autoencoder="AutoencoderKLQwenImage",
        layout=Layout.PACKED,
        mu=Mu.TOKENS,
        guidance_argument="true_cfg_scale",
        masks_padding=True,
        diffusers="0.35",
    ),
    Family(
        name="flux1",
        pipeline="FluxPipeline",
        transformer="FluxTransformer2DModel",
        backbone="tdmr1_core.models.flux1:Flux1Backbone",
        targets=JOINT_ATTENTION,
        max_sequence_length=512,
        no_guidance=1.0,
        comfy_prefix="transformer.",
        readers={"tokenizer": CLIP, "tokenizer_2": T5},
        layout=Layout.PACKED,
        mu=Mu.TOKENS,
        guidance_argument="true_cfg_scale",
        not_loaded=("image_encoder", "feature_extractor"),
        always_distilled=True,
        length_without_guidance=SCHNELL_LENGTH,
    ),
    Family(
        name="ernie_image",
        pipeline="ErnieImagePipeline",
        transformer="ErnieImageTransformer2DModel",
        backbone="tdmr1_core.models.ernie_image:ErnieImageBackbone",
        targets=SELF_ATTENTION,
        max_sequence_length=512,
        no_guidance=1.0,
        comfy_prefix="diffusion_model.",
        readers={"tokenizer": Reads("the text encoder", "tokenizer")},
        autoencoder="AutoencoderKLFlux2",
        layout=Layout.PATCHIFIED,
        takes_sigmas=False,
        takes_length=False,
        not_loaded=("pe", "pe_tokenizer"),
        masks_padding=True,
        diffusers="0.38",
        call_arguments={"use_pe": False},
    ),
):
    add_family(each)


def positions(denoiser: Mapping[str, Any]) -> float:
    """The number of patches in one direction that the network has positions for; infinity if the config has no limit.

    SD3 has a table of positions, Z-Image has the lengths of its axes (text, height, width).
    """
    limits = (denoiser.get("pos_embed_max_size"), *(denoiser.get("axes_lens") or ())[1:])
    return min((limit for limit in limits if limit), default=math.inf)
