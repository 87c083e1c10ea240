"""Tiny pipeline directories of the supported families, and LoRA files for them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from tdmr1_core.conformance.tiny_pipelines import make_tiny_pipeline

SD3_TARGETS = [
    f"attn.{name}"
    for name in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
]
ZIMAGE_TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "add_v_proj"]
"""The target modules of the published Z-Image LoRA. The network does not have the last two."""


def make_sd35(folder: Path) -> Path:
    """Write a pipeline like SD3.5 medium."""
    return make_tiny_pipeline("sd3", folder)


def make_zimage(folder: Path, seed: int = 0, shift: float = 3.0) -> Path:
    """Write a pipeline like Z-Image, with the static shift of its scheduler. `seed` is that of the transformer."""
    make_tiny_pipeline("zimage", folder, seed=seed)
    FlowMatchEulerDiscreteScheduler(shift=shift).save_pretrained(folder / "scheduler")
    return folder


def random_lora(network: nn.Module, targets: list[str], rank: int, seed: int = 0) -> Mapping[str, Tensor]:
    """Random weights of a LoRA that get_peft_model adds to the network, by PEFT's names and in PEFT's order."""
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets)
    adapted = get_peft_model(network, config, adapter_name="tdm")
    torch.manual_seed(seed)
    named = [(name, weight) for name, weight in adapted.named_parameters() if "tdm" in name]
    return {name: 0.3 * torch.randn_like(weight) for name, weight in named}


def published_checkpoint(network: nn.Module, targets: list[str], path: Path, rank: int = 32) -> Mapping[str, Tensor]:
    """Write a checkpoint in the authors' layout. Returns its weights by canonical name."""
    named = random_lora(network, targets, rank)
    torch.save({"decay": 0.9, "ema_parameters": list(named.values())}, path)
    return {name.removeprefix("base_model.model.").replace(".tdm.", "."): weight for name, weight in named.items()}
