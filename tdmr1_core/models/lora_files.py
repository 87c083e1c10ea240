"""LoRA files in diffusers' format: safetensors with `transformer.` names and the adapter's config as metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.roles import LoraShape, LoraWeights, Roles

WEIGHT_FILE = "pytorch_lora_weights.safetensors"
PREFIX = "transformer."


@dataclass(frozen=True)
class LoraFile:
    """A LoRA as read from disk."""

    shape: LoraShape
    weights: LoraWeights


def read_lora(path: Path) -> LoraFile:
    """Read a diffusers LoRA file, or the one inside a directory.

    Raises Tdmr1Error if it is missing, damaged, or without the metadata that tells its alpha (a LoRA loaded with a
    wrong alpha is silently wrong, so none is guessed).
    """
    path = path / WEIGHT_FILE if path.is_dir() else path
    if not path.is_file():
        raise Tdmr1Error(f"there is no LoRA file {path}", "give a .safetensors file or the directory that holds it")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {key.removeprefix(PREFIX): file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise Tdmr1Error(
            f"{path} is not a readable safetensors file: {error}", "download or export it again"
        ) from error
    try:
        config = _config(metadata)
        targets = [str(target) for target in config["target_modules"]]
        return LoraFile(LoraShape(int(config["r"]), float(config["lora_alpha"]), tuple(sorted(targets))), weights)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Tdmr1Error(
            f"{path} does not say its rank, alpha and target modules", "export it with its metadata (diffusers >= 0.35)"
        ) from error


def _config(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The transformer's adapter config out of a safetensors header."""
    packed = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    return {key.removeprefix(PREFIX): value for key, value in packed.items() if key.startswith(PREFIX)}


def write_lora(roles: Roles, role: str, folder: Path) -> Path:
    """Save a role as diffusers saves LoRAs, with the metadata that keeps alpha. Returns the file."""
    from diffusers import StableDiffusion3Pipeline
    from peft import get_peft_model_state_dict

    network = roles.backbone.network
    weights = get_peft_model_state_dict(network, adapter_name=role)
    StableDiffusion3Pipeline.save_lora_weights(
        folder,
        transformer_lora_layers={name: weight.detach().cpu().contiguous() for name, weight in weights.items()},
        transformer_lora_adapter_metadata=network.peft_config[role].to_dict(),  # type: ignore[union-attr,index]
    )
    return folder / WEIGHT_FILE
