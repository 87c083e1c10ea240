"""The built-in models: the embedded tiny models and the models with published weights.

Download and weight sizes are computed from the architectures and the precision of the published files.
"""

from __future__ import annotations

from dataclasses import replace
from importlib import resources

from tdmr1_core.models.families import ATTENTION, JOINT_ATTENTION
from tdmr1_core.models.registry import ModelEntry

STABILITY = "Stability AI Community License"


_TINY = resources.files("tdmr1_core") / "tiny"
_SHAPES = ModelEntry(
    name="tiny-tdm",
    summary="the embedded world of colored shapes, 24 x 24 pixels; trains on two CPU cores",
    family="sd3",
    base=str(_TINY / "pipeline"),
    lora=str(_TINY / "student"),
    domain="tiny",
    height=24,
    width=24,
    teacher_guidance=2.5,
    max_sequence_length=0,
    with_t5=False,
    targets=(*JOINT_ATTENTION, "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
    default_reward="object_count",
    default_preset="tiny",
    distill_preset="distill-tiny",
    licence="Apache-2.0",
    weights_gb=0.01,
)
_WORDS = replace(
    _SHAPES,
    name="tiny-words-tdm",
    summary="the embedded world of three-letter words, 16 x 36 pixels; learns to spell on two CPU cores",
    base=str(_TINY / "words_model" / "pipeline"),
    lora=str(_TINY / "words_model" / "student"),
    domain="words",
    height=16,
    width=36,
    default_reward="ocr_match",
    default_preset="tiny-words",
    distill_preset="distill-tiny-words",
)
_PAIRS = replace(
    _SHAPES,
    name="tiny-pairs-tdm",
    summary="the embedded world of pairs of shapes, 24 x 24 pixels; learns to compose on two CPU cores",
    base=str(_TINY / "pairs_model" / "pipeline"),
    lora=str(_TINY / "pairs_model" / "student"),
    default_reward="geneval",
    default_preset="tiny-pairs",
    distill_preset="distill-tiny-pairs",
)
BUILTIN_MODELS = (
    _SHAPES,
    _WORDS,
    _PAIRS,
    ModelEntry(
        name="sd3.5-tdm",
        summary="Stable Diffusion 3.5 medium in 4 steps, the model of the paper",
        family="sd3",
        base="stabilityai/stable-diffusion-3.5-medium",
        lora="Luo-Yihong/TDM_sd3-5_lora/tdm_sd3-5_lora.ckpt",
        domain="photo",
        height=512,
        width=512,
        teacher_steps=40,
        max_sequence_length=128,  # the value of the authors' trainer
        precision="bf16",
        licence=STABILITY,
        gated=True,
        download_gb=16.4,
        weights_gb=16.4,
    ),
    ModelEntry(
        name="sd3-tdm",
        summary="Stable Diffusion 3 medium in 4 steps",
        family="sd3",
        base="stabilityai/stable-diffusion-3-medium-diffusers",
        lora="Luo-Yihong/TDM_sd3_lora",
        domain="photo",
        height=1024,
        width=1024,
        shift=6.0,  # the value of the published example
        teacher_guidance=7.0,
        adapter_scale=0.125,  # required by the authors, for a LoRA file that is read with alpha = rank
        lora_alpha="rank",
        precision="bf16",
        licence=STABILITY,
        gated=True,
        download_gb=15.6,
        weights_gb=15.6,
    ),
    ModelEntry(
        name="sd3.5-large-tdm",
        summary="Stable Diffusion 3.5 large; you provide the few-step LoRA",
        family="sd3",
        base="stabilityai/stable-diffusion-3.5-large",
        lora=None,
        domain="photo",
        height=512,
        width=512,
        needs_lora=True,
        precision="bf16",
        licence=STABILITY,
        gated=True,
        download_gb=27.6,
        weights_gb=27.7,
    ),
    ModelEntry(
        name="z-image-turbo",
        summary="Z-Image-Turbo (6B), a few-step model that needs no LoRA",
        family="zimage",
        base="Tongyi-MAI/Z-Image-Turbo",
        lora=None,
        domain="photo",
        height=1024,
        width=1024,
        teacher_steps=8,
        teacher_guidance=1.0,
        max_sequence_length=512,
        targets=ATTENTION,
        guidance_distilled=True,
        precision="bf16",
        licence="Apache-2.0",
        download_gb=32.8,
        weights_gb=20.7,
    ),
)
"""The entries of the built-in models."""
