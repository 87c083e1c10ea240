"""Tiny networks of each family, whose LoRA files the tests write and read."""

from __future__ import annotations

from typing import Any

from diffusers import SD3Transformer2DModel, ZImageTransformer2DModel

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
KINDS: dict[str, Any] = {"sd3": (SD3Transformer2DModel, SD3), "zimage": (ZImageTransformer2DModel, ZIMAGE)}
"""The class and the config of a network, by family."""
