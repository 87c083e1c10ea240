"""Which file a LoRA is, and what it says of itself before any of its numbers is read; torch is not needed for it."""

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
    """The file itself, or the one in a directory. Raises Tdmr1Error where there is none."""
    if path.is_dir():
        for name in (WEIGHT_FILE, PEFT_FILE):
            if (path / name).is_file():
                return path / name
        found = sorted(file for file in path.iterdir() if file.suffix in (".safetensors", ".ckpt"))
        if len(found) == 1:
            return found[0]
        path = path / WEIGHT_FILE
    if not path.is_file():
        raise Tdmr1Error(f"there is no LoRA file {path}", "give a .safetensors or .ckpt file, or its directory")
    return path


@contextmanager
def open_safetensors(path: Path, framework: Literal["pt", "np"]) -> Iterator[Any]:
    """A file to read from. Raises Tdmr1Error for one that is damaged."""
    try:
        with safe_open(path, framework=framework) as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise Tdmr1Error(
            f"{path} is not a readable safetensors file: {error}", "download or export it again"
        ) from error


def adapter_settings(metadata: Mapping[str, str], path: Path) -> tuple[dict[str, Any], float | None]:
    """PEFT's adapter config, from the file's metadata or its neighbour, and kohya's alpha of the whole network.

    Raises Tdmr1Error where either is damaged.
    """
    try:
        packed = json.loads(metadata.get("lora_adapter_metadata", "{}"))
        config = {key.removeprefix(PREFIX): value for key, value in packed.items() if key.startswith(PREFIX)}
        neighbour = path.with_name(PEFT_CONFIG)
        if not config and neighbour.is_file():
            config = dict(json.loads(neighbour.read_text(encoding="utf-8")))
        _check_config(config)
        network_alpha = metadata.get("ss_network_alpha")
        return config, float(network_alpha) if network_alpha not in (None, "None") else None
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise Tdmr1Error(f"the metadata of {path} is damaged: {error}", "download or export it again") from error


def says_alpha(path: Path) -> bool:
    """Whether a LoRA in safetensors says its alpha; not where it is elsewhere, or damaged, which loading it tells."""
    try:
        path = weight_file(path)
        if path.suffix != ".safetensors":
            return False
        with open_safetensors(path, "np") as file:
            metadata, keys = file.metadata() or {}, [parse_key(key) for key in file.keys()]  # noqa: SIM118
        config, network_alpha = adapter_settings(metadata, path)
    except Tdmr1Error:
        return False
    own = any(key is not None and key.part == "alpha" for key in keys)
    return own or network_alpha is not None or "lora_alpha" in config


def _check_config(config: Mapping[str, Any]) -> None:
    """Raise ValueError for an adapter's config with a rank, alpha or target modules that are none."""
    rank, alpha, targets = config.get("r", 1), config.get("lora_alpha", 1), config.get("target_modules") or []
    if not isinstance(rank, int):
        raise ValueError(f"its rank is {rank!r}")
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise ValueError(f"its alpha is {alpha!r}")
    if not isinstance(targets, str | list) or not all(isinstance(target, str) for target in targets):
        raise ValueError(f"its target modules are {targets!r}")
