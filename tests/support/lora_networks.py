"""Tiny networks of each family, whose LoRA files the tests write and read."""

from __future__ import annotations

from typing import Any

from diffusers import (
    ErnieImageTransformer2DModel,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    Krea2Transformer2DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    ZImageTransformer2DModel,
)

SD3: dict[str, Any] = {
    "sample_size": 4,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 12,
    "caption_projection_dim": 16,
    "pooled_projection_dim": 10,
    "pos_embed_max_size": 8,
    "dual_attention_layers": (0,),
    "qk_norm": "rms_norm",
}
ZIMAGE: dict[str, Any] = {
    "in_channels": 4,
    "dim": 16,
    "n_layers": 1,
    "n_refiner_layers": 1,
    "n_heads": 2,
    "n_kv_heads": 2,
    "cap_feat_dim": 12,
    "axes_dims": [4, 2, 2],
    "axes_lens": [16, 8, 8],
}
FLUX1: dict[str, Any] = {
    "in_channels": 4,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 12,
    "pooled_projection_dim": 10,
    "guidance_embeds": True,
    "axes_dims_rope": (4, 2, 2),
}
FLUX2: dict[str, Any] = {
    "in_channels": 4,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 12,
    "axes_dims_rope": (2, 2, 2, 2),
}
QWEN_IMAGE: dict[str, Any] = {
    "in_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 12,
    "axes_dims_rope": (4, 2, 2),
}
KREA2: dict[str, Any] = {
    "in_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 24,
    "timestep_embed_dim": 8,
    "text_hidden_dim": 12,
    "num_text_layers": 3,
    "text_num_attention_heads": 2,
    "text_num_key_value_heads": 2,
    "text_intermediate_size": 20,
    "num_layerwise_text_blocks": 1,
    "num_refiner_text_blocks": 2,
    "axes_dims_rope": (4, 2, 2),
}
ERNIE_IMAGE: dict[str, Any] = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_layers": 2,
    "ffn_hidden_size": 24,
    "in_channels": 4,
    "out_channels": 4,
    "text_in_dim": 12,
    "rope_axes_dim": (4, 2, 2),
}
KINDS: dict[str, Any] = {"sd3": (SD3Transformer2DModel, SD3), "zimage": (ZImageTransformer2DModel, ZIMAGE)}
"""The class and the config of a network, by family with a published list of tensors without names."""

ALL_KINDS: dict[str, Any] = KINDS | {
    "flux1": (FluxTransformer2DModel, FLUX1),
    "flux2_klein": (Flux2Transformer2DModel, FLUX2),
    "qwen_image": (QwenImageTransformer2DModel, QWEN_IMAGE),
    "krea2": (Krea2Transformer2DModel, KREA2),
    "ernie_image": (ErnieImageTransformer2DModel, ERNIE_IMAGE),
}
"""`KINDS`, and the families without a published list of tensors."""
