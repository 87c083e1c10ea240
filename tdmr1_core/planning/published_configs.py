"""Configs of the published models, so that a run can be planned without a download.

They hold the values that affect sizes and noise levels; other values are the defaults of diffusers and transformers.
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
    "tie_word_embeddings": True,
}
QWEN3_8B: Config = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
QWEN3_VL_4B: Config = {
    "text_config": QWEN3_4B,
    "vision_config": {
        "depth": 24,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_heads": 16,
        "out_hidden_size": 2560,
        "deepstack_visual_indexes": [5, 11, 17],
    },
}
QWEN2_5_VL_7B: Config = {
    "text_config": {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    },
    "vision_config": {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 3584,
    },
}
MINISTRAL_3B: Config = {
    "text_config": {
        "model_type": "ministral3",
        "vocab_size": 131072,
        "hidden_size": 3072,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    "vision_config": {
        "model_type": "pixtral",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "head_dim": 64,
        "image_size": 1540,
        "patch_size": 14,
    },
}
FLUX2_AUTOENCODER: Config = {
    "block_out_channels": [128, 256, 512, 512],
    "latent_channels": 32,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
}
"""The autoencoder of FLUX.2 and ERNIE-Image: 32 channels, 8 x 8 pixels per latent."""
QWEN_AUTOENCODER: Config = {
    "base_dim": 96,
    "z_dim": 16,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "temperal_downsample": [False, True, True],
}
"""The autoencoder of Qwen-Image and Krea 2: 16 channels, 8 x 8 pixels per latent."""


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


def _scheduler(**values: Any) -> Config:
    """The config of a FlowMatchEulerDiscreteScheduler; diffusers has the same defaults."""
    return {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "base_image_seq_len": 256,
        "base_shift": 0.5,
        "max_image_seq_len": 4096,
        "max_shift": 1.15,
        "num_train_timesteps": 1000,
        "shift": 1.0,
        "shift_terminal": None,
        "time_shift_type": "exponential",
        "use_dynamic_shifting": False,
        **values,
    }


def _klein(layers: int, single: int, heads: int, encoder: Config, *, distilled: bool) -> dict[str, Config]:
    """A Flux2KleinPipeline. Its network reads three hidden layers of the text encoder at once."""
    return {
        "model_index.json": {
            "_class_name": "Flux2KleinPipeline",
            "is_distilled": distilled,
            "text_encoder": ["transformers", "Qwen3ForCausalLM"],
        },
        "transformer/config.json": {
            "_class_name": "Flux2Transformer2DModel",
            "patch_size": 1,
            "in_channels": 128,
            "num_layers": layers,
            "num_single_layers": single,
            "attention_head_dim": 128,
            "num_attention_heads": heads,
            "joint_attention_dim": 3 * encoder["hidden_size"],
            "guidance_embeds": False,
        },
        "vae/config.json": FLUX2_AUTOENCODER,
        "text_encoder/config.json": encoder,
        "scheduler/scheduler_config.json": _scheduler(shift=3.0, use_dynamic_shifting=True),
    }


def _krea2(*, distilled: bool) -> dict[str, Config]:
    return {
        "model_index.json": {
            "_class_name": "Krea2Pipeline",
            "is_distilled": distilled,
            "text_encoder": ["transformers", "Qwen3VLModel"],
        },
        "transformer/config.json": {
            "_class_name": "Krea2Transformer2DModel",
            "in_channels": 64,
            "num_layers": 28,
            "attention_head_dim": 128,
            "num_attention_heads": 48,
            "num_key_value_heads": 12,
            "intermediate_size": 16384,
            "text_hidden_dim": 2560,
            "num_text_layers": 12,
            "text_num_attention_heads": 20,
            "text_num_key_value_heads": 20,
            "text_intermediate_size": 6912,
            "num_layerwise_text_blocks": 2,
            "num_refiner_text_blocks": 2,
        },
        "vae/config.json": QWEN_AUTOENCODER,
        "text_encoder/config.json": QWEN3_VL_4B,
        "scheduler/scheduler_config.json": _scheduler(max_image_seq_len=6400, use_dynamic_shifting=True),
    }


QWEN_IMAGE: dict[str, Config] = {
    "model_index.json": {
        "_class_name": "QwenImagePipeline",
        "text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
    },
    "transformer/config.json": {
        "_class_name": "QwenImageTransformer2DModel",
        "patch_size": 2,
        "in_channels": 64,
        "out_channels": 16,
        "num_layers": 60,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 3584,
    },
    "vae/config.json": QWEN_AUTOENCODER,
    "text_encoder/config.json": QWEN2_5_VL_7B,
    "scheduler/scheduler_config.json": _scheduler(
        max_image_seq_len=8192, max_shift=0.9, shift_terminal=0.02, use_dynamic_shifting=True
    ),
}


def _flux1(scheduler: Config, *, guidance_embeds: bool) -> dict[str, Config]:
    return {
        "model_index.json": {
            "_class_name": "FluxPipeline",
            "text_encoder": ["transformers", "CLIPTextModel"],
            "text_encoder_2": ["transformers", "T5EncoderModel"],
        },
        "transformer/config.json": {
            "_class_name": "FluxTransformer2DModel",
            "patch_size": 1,
            "in_channels": 64,
            "num_layers": 19,
            "num_single_layers": 38,
            "attention_head_dim": 128,
            "num_attention_heads": 24,
            "joint_attention_dim": 4096,
            "pooled_projection_dim": 768,
            "guidance_embeds": guidance_embeds,
        },
        "vae/config.json": AUTOENCODER,
        "text_encoder/config.json": CLIP_L,
        "text_encoder_2/config.json": T5_XXL,
        "scheduler/scheduler_config.json": scheduler,
    }


ERNIE_IMAGE: dict[str, Config] = {
    "model_index.json": {"_class_name": "ErnieImagePipeline", "text_encoder": ["transformers", "Mistral3Model"]},
    "transformer/config.json": {
        "_class_name": "ErnieImageTransformer2DModel",
        "patch_size": 1,
        "in_channels": 128,
        "out_channels": 128,
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_layers": 36,
        "ffn_hidden_size": 12288,
        "text_in_dim": 3072,
    },
    "vae/config.json": FLUX2_AUTOENCODER,
    "text_encoder/config.json": MINISTRAL_3B,
    "scheduler/scheduler_config.json": _scheduler(shift=4.0),
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
        "scheduler/scheduler_config.json": _scheduler(shift=3.0),
    },
    "black-forest-labs/FLUX.2-klein-4B": _klein(5, 20, 24, QWEN3_4B, distilled=True),
    "black-forest-labs/FLUX.2-klein-base-4B": _klein(5, 20, 24, QWEN3_4B, distilled=False),
    "black-forest-labs/FLUX.2-klein-9B": _klein(8, 24, 32, QWEN3_8B, distilled=True),
    "black-forest-labs/FLUX.2-klein-base-9B": _klein(8, 24, 32, QWEN3_8B, distilled=False),
    "krea/Krea-2-Turbo": _krea2(distilled=True),
    "krea/Krea-2-Raw": _krea2(distilled=False),
    "Qwen/Qwen-Image": QWEN_IMAGE,
    "Qwen/Qwen-Image-2512": QWEN_IMAGE,
    "black-forest-labs/FLUX.1-schnell": _flux1(_scheduler(), guidance_embeds=False),
    "black-forest-labs/FLUX.1-dev": _flux1(_scheduler(shift=3.0, use_dynamic_shifting=True), guidance_embeds=True),
    "baidu/ERNIE-Image-Turbo": ERNIE_IMAGE,
    "baidu/ERNIE-Image": ERNIE_IMAGE,
}
"""Configs by hub id, then by file name."""


def config_of(source: str, name: str) -> Mapping[str, Any]:
    """A config of a model: the built-in one of a published model, else that in its directory or on the hub.

    Raises Tdmr1Error if it is missing, damaged or not available.
    """
    known = PUBLISHED.get(source)
    return read_config(source, name) if known is None else known[name]
