"""Finds a LoRA file and reads its metadata. It reads no tensors and does not need torch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.lora.key_names import parse_key

WEIGHT_FILE = "pytorch_lora_weights.safetensors"
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "transformer."


def weight_file(path: Path) -> Path:
    """The path itself, or the LoRA file in a directory. Raises Tdmr1Error if there is none."""
    if path.is_dir():
        for name in (WEIGHT_FILE, PEFT_FILE):
            if (path / name).is_file():
                return path / name
        found = sorted(file for file in path.iterdir() if file.suffix in (".safetensors", ".ckpt"))
        if len(found) == 1:
            return found[0]
        path = path / WEIGHT_FILE
    if not path.is_file():
        raise Tdmr1Error(
            f"the LoRA file {path} does not exist",
            "give a .safetensors or .ckpt file, or its directory",
            code="lora-missing",
            values={"path": str(path)},
        )
    return path


@contextmanager
def open_safetensors(path: Path, framework: Literal["pt", "np"]) -> Iterator[Any]:
    """Open a safetensors file. Raises Tdmr1Error if it is damaged."""
    try:
        with safe_open(path, framework=framework) as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise Tdmr1Error(
            f"{path} is not a readable safetensors file: {error}",
            "download or export it again",
            code="lora-unreadable",
            values={"path": str(path)},
        ) from error


def adapter_settings(metadata: Mapping[str, str], path: Path) -> tuple[dict[str, Any], float | None]:
    """PEFT's adapter config and kohya's alpha for the whole network; empty and None if the file has none.

    The config is in the file's metadata, or in adapter_config.json beside it. Raises Tdmr1Error if it is damaged.
    """
    try:
        packed = json.loads(metadata.get("lora_adapter_metadata", "{}"))
        config = {key.removeprefix(PREFIX): value for key, value in packed.items() if key.startswith(PREFIX)}
        beside = path.with_name(PEFT_CONFIG)
        if not config and beside.is_file():
            config = dict(json.loads(beside.read_text(encoding="utf-8")))
        _check_config(config)
        network_alpha = metadata.get("ss_network_alpha")
        return config, float(network_alpha) if network_alpha not in (None, "None") else None
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise Tdmr1Error(
            f"the metadata of {path} is damaged: {error}",
            "download or export it again",
            code="lora-unreadable",
            values={"path": str(path)},
        ) from error


def has_alpha(path: Path) -> bool:
    """Whether a LoRA file contains its alpha. False for a missing or damaged file, which loading reports."""
    try:
        path = weight_file(path)
        if path.suffix != ".safetensors":
            return False
        with open_safetensors(path, "np") as file:
            metadata, keys = file.metadata() or {}, [parse_key(key) for key in file.keys()]  # noqa: SIM118
        config, network_alpha = adapter_settings(metadata, path)
    except Tdmr1Error:
        return False
    per_module = any(key is not None and key.part == "alpha" for key in keys)
    return per_module or network_alpha is not None or "lora_alpha" in config


def _check_config(config: Mapping[str, Any]) -> None:
    """Raise ValueError for an adapter config whose rank, alpha or target modules have a wrong type or value."""
    rank, alpha, targets = config.get("r", 1), config.get("lora_alpha", 1), config.get("target_modules") or []
    if not isinstance(rank, int):
        raise ValueError(f"the rank is {rank!r}, not an integer")
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise ValueError(f"alpha is {alpha!r}, not a finite number")
    if not isinstance(targets, str | list) or not all(isinstance(target, str) for target in targets):
        raise ValueError(f"the target modules are {targets!r}, not text or a list of texts")
