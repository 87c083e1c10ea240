"""Configs of the published models, so that a run can be planned without a download.

They hold the values that affect sizes; all other values are the defaults of diffusers and transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tdmr1_core.models.pipeline_files import read_config

Config = dict[str, Any]

AUTOENCODER: Config = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 16,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
"""The autoencoder of SD3 and, with other weights, of Z-Image: 16 channels, 8 x 8 pixels per latent."""
CLIP_L: Config = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
CLIP_G: Config = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
}
T5_XXL: Config = {
    "vocab_size": 32128,
    "d_model": 4096,
    "d_ff": 10240,
    "d_kv": 64,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
QWEN3_4B: Config = {
    "vocab_size": 151936,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
}


def _sd3(heads: int, layers: int, **further: Any) -> dict[str, Config]:
    """A StableDiffusion3Pipeline with all three text encoders."""
    return {
        "model_index.json": {
            "_class_name": "StableDiffusion3Pipeline",
            "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            "text_encoder_3": ["transformers", "T5EncoderModel"],
        },
        "transformer/config.json": {
            "_class_name": "SD3Transformer2DModel",
            "sample_size": 128,
            "patch_size": 2,
            "in_channels": 16,
            "out_channels": 16,
            "num_layers": layers,
            "attention_head_dim": 64,
            "num_attention_heads": heads,
            "joint_attention_dim": 4096,
            "caption_projection_dim": 64 * heads,
            "pooled_projection_dim": 2048,
            **further,
        },
        "vae/config.json": AUTOENCODER,
        "text_encoder/config.json": CLIP_L,
        "text_encoder_2/config.json": CLIP_G,
        "text_encoder_3/config.json": T5_XXL,
    }


PUBLISHED: dict[str, dict[str, Config]] = {
    "stabilityai/stable-diffusion-3.5-medium": _sd3(
        24, 24, pos_embed_max_size=384, dual_attention_layers=list(range(13)), qk_norm="rms_norm"
    ),
    "stabilityai/stable-diffusion-3-medium-diffusers": _sd3(24, 24, pos_embed_max_size=192),
    "stabilityai/stable-diffusion-3.5-large": _sd3(38, 38, pos_embed_max_size=192, qk_norm="rms_norm"),
    "Tongyi-MAI/Z-Image-Turbo": {
        "model_index.json": {"_class_name": "ZImagePipeline", "text_encoder": ["transformers", "Qwen3Model"]},
        "transformer/config.json": {
            "_class_name": "ZImageTransformer2DModel",
            "in_channels": 16,
            "dim": 3840,
            "n_layers": 30,
            "n_refiner_layers": 2,
            "n_heads": 30,
            "n_kv_heads": 30,
            "cap_feat_dim": 2560,
        },
        "vae/config.json": AUTOENCODER,
        "text_encoder/config.json": QWEN3_4B,
    },
}
"""Configs by hub id, then by file name."""


def config_of(source: str, name: str) -> Mapping[str, Any]:
    """A config of a model: the built-in one of a published model, else that in its directory or on the hub.

    Raises Tdmr1Error if it is missing, damaged or not available.
    """
    known = PUBLISHED.get(source)
    return read_config(source, name) if known is None else known[name]
