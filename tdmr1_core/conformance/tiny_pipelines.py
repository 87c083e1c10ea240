"""Tiny pipeline directories of every family, written by diffusers: the right classes, small widths, random weights.

They stand in for published weights wherever none are there: conventions of a family can be checked against its own
pipeline on any machine. A directory has less than 8 MB, and an image of 64 x 64 pixels takes less than a second.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPTextModel, CLIPTextModelWithProjection, Qwen3ForCausalLM, Qwen3Model

from tdmr1_core.conformance.tiny_parts import (
    autoencoder_flux2,
    autoencoder_kl,
    autoencoder_qwen,
    clip_encoder,
    ministral3,
    mistral3,
    qwen3,
    qwen3_vl,
    qwen25_vl,
    randomize,
    scheduler,
    t5_encoder,
)
from tdmr1_core.conformance.tiny_tokenizers import clip_tokenizer, mistral_tokenizer, qwen_tokenizer, t5_tokenizer

HEADS = 2
HEAD_DIM = 16
WIDTH = HEADS * HEAD_DIM
AXES = (4, 6, 6)
"""Rotary dimensions of the three axes, in the proportions of the published networks. Their sum is the head's."""
TEXT_WIDTH = 16
CLIP_WIDTHS = (24, 40)
T5_WIDTH = 80
"""More than both CLIP widths together: SD3 pads the CLIP embeddings to T5's width."""
KREA_TAPS = (2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13)
"""Hidden states that Krea 2's pipeline reads. The published network has 36 layers and a tap at every third."""
ENHANCER_TOKENS = 16
GAIN = 1.5
"""Gain of the transformers' matrices: at 1, another prompt changes some images by less than one level of 255."""


def make_sd3(folder: Path, *, seed: int = 0) -> None:
    """Write a pipeline like SD3.5 medium: dual attention in the first block, RMS norms, two CLIPs and T5."""
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=2,
        attention_head_dim=HEAD_DIM,
        num_attention_heads=HEADS,
        joint_attention_dim=T5_WIDTH,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=sum(CLIP_WIDTHS),
        pos_embed_max_size=16,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    tokenizers = clip_tokenizer(), clip_tokenizer(pad_token="!"), t5_tokenizer()
    StableDiffusion3Pipeline(
        transformer=randomize(transformer, seed, GAIN),
        scheduler=scheduler("sd3"),
        vae=autoencoder_kl(scaling_factor=1.5305, shift_factor=0.0609),
        text_encoder=clip_encoder(CLIPTextModelWithProjection, tokenizers[0], CLIP_WIDTHS[0]),
        tokenizer=tokenizers[0],
        text_encoder_2=clip_encoder(CLIPTextModelWithProjection, tokenizers[1], CLIP_WIDTHS[1]),
        tokenizer_2=tokenizers[1],
        text_encoder_3=t5_encoder(tokenizers[2], T5_WIDTH),
        tokenizer_3=tokenizers[2],
    ).save_pretrained(folder)


def make_zimage(folder: Path, *, seed: int = 0) -> None:
    """Write a pipeline like Z-Image: noise and context refiners, pad tokens, Qwen3 without language head."""
    from diffusers import ZImagePipeline, ZImageTransformer2DModel

    transformer = ZImageTransformer2DModel(
        in_channels=16,
        dim=WIDTH,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=HEADS,
        n_kv_heads=HEADS,
        cap_feat_dim=TEXT_WIDTH,
        axes_dims=list(AXES),
        axes_lens=[1024, 64, 64],
    )
    tokenizer = qwen_tokenizer()
    ZImagePipeline(
        transformer=randomize(transformer, seed, GAIN),
        scheduler=scheduler("zimage"),
        vae=autoencoder_kl(scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=qwen3(Qwen3Model, tokenizer, TEXT_WIDTH, layers=3),
        tokenizer=tokenizer,
    ).save_pretrained(folder)


def make_flux2_klein(folder: Path, *, seed: int = 0, distilled: bool = True) -> None:
    """Write a pipeline like FLUX.2 klein, or its base if not `distilled`: fused single blocks, no guidance embedding.

    The text encoder has 28 layers, because the pipeline reads hidden states 9, 18 and 27.
    """
    from diffusers import Flux2KleinPipeline, Flux2Transformer2DModel

    transformer = Flux2Transformer2DModel(
        in_channels=128,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=HEAD_DIM,
        num_attention_heads=HEADS,
        joint_attention_dim=3 * TEXT_WIDTH,
        axes_dims_rope=(HEAD_DIM // 4,) * 4,
        guidance_embeds=False,
    )
    tokenizer = qwen_tokenizer()
    Flux2KleinPipeline(
        transformer=randomize(transformer, seed, GAIN),
        scheduler=scheduler("flux2_klein"),
        vae=autoencoder_flux2(),
        text_encoder=qwen3(Qwen3ForCausalLM, tokenizer, TEXT_WIDTH, layers=28),
        tokenizer=tokenizer,
        is_distilled=distilled,
    ).save_pretrained(folder)


def make_krea2(folder: Path, *, seed: int = 0, distilled: bool = True) -> None:
    """Write a pipeline like Krea 2 Turbo, or Raw if not `distilled`: gated attention, twelve tapped text layers."""
    from diffusers import Krea2Pipeline, Krea2Transformer2DModel

    transformer = Krea2Transformer2DModel(
        in_channels=64,
        num_layers=2,
        attention_head_dim=HEAD_DIM,
        num_attention_heads=HEADS,
        num_key_value_heads=1,
        intermediate_size=2 * WIDTH,
        timestep_embed_dim=64,
        text_hidden_dim=TEXT_WIDTH,
        num_text_layers=len(KREA_TAPS),
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=2 * TEXT_WIDTH,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=AXES,
    )
    tokenizer = qwen_tokenizer()
    Krea2Pipeline(
        transformer=randomize(transformer, seed, GAIN),
        scheduler=scheduler("krea2"),
        vae=autoencoder_qwen(),
        text_encoder=qwen3_vl(tokenizer, TEXT_WIDTH, layers=max(KREA_TAPS) + 1),
        tokenizer=tokenizer,
        text_encoder_select_layers=KREA_TAPS,
        is_distilled=distilled,
    ).save_pretrained(folder)


def make_qwen_image(folder: Path, *, seed: int = 0) -> None:
    """Write a pipeline like Qwen-Image: dual-stream blocks, Qwen2.5-VL with its language head."""
    from diffusers import QwenImagePipeline, QwenImageTransformer2DModel

    transformer = QwenImageTransformer2DModel(
        num_layers=2,
        attention_head_dim=HEAD_DIM,
        num_attention_heads=HEADS,
        joint_attention_dim=2 * TEXT_WIDTH,
        axes_dims_rope=AXES,
    )
    tokenizer = qwen_tokenizer()
    QwenImagePipeline(
        transformer=randomize(transformer, seed, GAIN),
        scheduler=scheduler("qwen_image"),
        vae=autoencoder_qwen(),
        text_encoder=qwen25_vl(tokenizer, 2 * TEXT_WIDTH, layers=2),
        tokenizer=tokenizer,
    ).save_pretrained(folder)


def make_flux1(folder: Path, *, seed: int = 0) -> None:
    """Write a pipeline like FLUX.1 schnell: dual and single blocks, no guidance embedding, CLIP and T5."""
    from diffusers import FluxPipeline, FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        in_channels=64,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=HEAD_DIM,
        num_attention_heads=HEADS,
        joint_attention_dim=T5_WIDTH,
        pooled_projection_dim=CLIP_WIDTHS[0],
        guidance_embeds=False,
        axes_dims_rope=AXES,
    )
    tokenizers = clip_tokenizer(), t5_tokenizer()
    FluxPipeline(
        transformer=randomize(transformer, seed, GAIN),
        scheduler=scheduler("flux1"),
        vae=autoencoder_kl(scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=clip_encoder(CLIPTextModel, tokenizers[0], CLIP_WIDTHS[0]),
        tokenizer=tokenizers[0],
        text_encoder_2=t5_encoder(tokenizers[1], T5_WIDTH),
        tokenizer_2=tokenizers[1],
    ).save_pretrained(folder)


def make_ernie_image(folder: Path, *, seed: int = 0) -> None:
    """Write a pipeline like ERNIE-Image-Turbo: shared modulation, Mistral3, and a prompt enhancer of 16 tokens."""
    from diffusers import ErnieImagePipeline, ErnieImageTransformer2DModel

    transformer = ErnieImageTransformer2DModel(
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        num_layers=2,
        ffn_hidden_size=2 * WIDTH,
        text_in_dim=TEXT_WIDTH,
        rope_axes_dim=AXES,
    )
    tokenizer, enhancer_tokenizer = mistral_tokenizer(), mistral_tokenizer(max_length=ENHANCER_TOKENS)
    ErnieImagePipeline(
        transformer=randomize(transformer, seed, GAIN),
        scheduler=scheduler("ernie_image"),
        vae=autoencoder_flux2(),
        text_encoder=mistral3(tokenizer, TEXT_WIDTH, layers=3),
        tokenizer=tokenizer,
        pe=ministral3(enhancer_tokenizer, TEXT_WIDTH),
        pe_tokenizer=enhancer_tokenizer,
    ).save_pretrained(folder)


MAKERS: dict[str, Callable[..., None]] = {
    "sd3": make_sd3,
    "zimage": make_zimage,
    "flux2_klein": make_flux2_klein,
    "krea2": make_krea2,
    "qwen_image": make_qwen_image,
    "flux1": make_flux1,
    "ernie_image": make_ernie_image,
}
"""Writers of a pipeline directory by family. They take the folder, a seed, and `distilled` where there is a base.

The seed is that of the transformer. All other parts are equal, as those of a few-step checkpoint and its base.
"""


def make_tiny_pipeline(family: str, folder: Path, *, seed: int = 0, **variant: Any) -> Path:
    """Write the tiny pipeline of a family. Returns the folder. The global random state of torch does not change.

    `variant` is `distilled=False` for the base of flux2_klein and krea2. Raises KeyError for an unknown family.
    """
    make = MAKERS[family]
    with torch.random.fork_rng(devices=[]):
        make(folder, seed=seed, **variant)
    return folder
