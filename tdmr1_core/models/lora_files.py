"""LoRA files: diffusers', PEFT's and kohya's safetensors, and the published list of tensors without names.

Reading unpickles nothing: torch.load runs with `weights_only=True`. A file is fitted to the network's skeleton, so that
whatever is wrong with it is said before any weight of the network is loaded.
"""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.families import Family
from tdmr1_core.models.lora_fitting import RawLora, fitted, named_by_position
from tdmr1_core.models.lora_names import parse_key
from tdmr1_core.models.roles import LoraShape, LoraWeights, Roles
from tdmr1_core.models.skeleton import Skeleton

WEIGHT_FILE = "pytorch_lora_weights.safetensors"
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
COMFY_FILE = "comfyui_lora.safetensors"
PREFIX = "transformer."
NAMELESS = "ema_parameters"
"""Where the published checkpoints keep their list of tensors."""
BY_POSITION = "by position: two tensors of one shape that had changed places could not be noticed"


@dataclass(frozen=True)
class LoraFile:
    """A LoRA as read from disk, with the adapter scale folded into its B matrices."""

    path: Path
    sha256: str
    layout: str
    shape: LoraShape
    weights: LoraWeights
    scale: float
    """The adapter scale that was folded in."""

    @property
    def record(self) -> dict[str, Any]:
        """What was loaded, as plain data."""
        return {
            "file": str(self.path),
            "sha256": self.sha256,
            "layout": self.layout,
            "weights": len(self.weights),
            "rank": self.shape.rank,
            "alpha": self.shape.alpha,
            "adapter_scale": self.scale,
        }

    def __str__(self) -> str:
        scale = "" if self.scale == 1 else f", adapter scale {self.scale:g} folded in"
        return (
            f"{len(self.weights)} weights of {self.path} ({self.layout}), rank {self.shape.rank}, "
            f"alpha {self.shape.alpha:g}{scale}, sha256 {self.sha256[:16]}"
        )


def read_lora(
    path: Path,
    skeleton: Skeleton,
    expected: LoraShape,
    *,
    alpha: float | Literal["rank"] | None = None,
    scale: float = 1.0,
) -> LoraFile:
    """Read a LoRA file, or the one inside a directory, for this network.

    `expected` says rank, alpha and targets of a list without names, which says none of them; `alpha` is taken where a
    file with names doesn't say it. Raises Tdmr1Error for a file that is missing, damaged, holds more than tensors or
    does not fit, and for one that doesn't say its alpha where none is given: a wrong alpha is silently wrong.
    """
    path = _weight_file(path)
    raw = (_read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)).widened()
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if isinstance(raw.tensors, list):
        weights = named_by_position(raw.tensors, skeleton, expected, path)
        layout, shape = f"the published list without names, {BY_POSITION}", expected
    else:
        layout, shape, weights = fitted(raw, skeleton, expected.targets, alpha, path)
    if not all(bool(weight.isfinite().all()) for weight in weights.values()):
        raise Tdmr1Error(f"{path} holds numbers that are not finite", "download or export it again")
    if scale != 1:
        weights = {name: weight * scale if ".lora_B." in name else weight for name, weight in weights.items()}
    return LoraFile(path, sha256, layout, shape, weights, scale)


def rank_told(path: Path) -> int | None:
    """The rank of a LoRA that is here in safetensors, from its header alone; None for any other.

    Raises Tdmr1Error for a file that is damaged.
    """
    path = _weight_file(path) if path.exists() else path
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    with _safetensors(path) as file:
        for name in file.keys():  # noqa: SIM118
            key = parse_key(name)
            if key is not None and key.part == "down":
                return int(file.get_slice(name).get_shape()[0])
    return None


@contextmanager
def _safetensors(path: Path) -> Iterator[Any]:
    """A file to read from. Raises Tdmr1Error for one that is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise Tdmr1Error(
            f"{path} is not a readable safetensors file: {error}", "download or export it again"
        ) from error


def _weight_file(path: Path) -> Path:
    """The file itself, or the one in a directory."""
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


def _read_safetensors(path: Path) -> RawLora:
    with _safetensors(path) as file:
        metadata = file.metadata() or {}
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    try:
        packed = json.loads(metadata.get("lora_adapter_metadata", "{}"))
        config = {key.removeprefix(PREFIX): value for key, value in packed.items() if key.startswith(PREFIX)}
        neighbour = path.with_name(PEFT_CONFIG)
        if not config and neighbour.is_file():
            config = dict(json.loads(neighbour.read_text(encoding="utf-8")))
        _check_config(config)
        network_alpha = metadata.get("ss_network_alpha")
        return RawLora(tensors, config, float(network_alpha) if network_alpha not in (None, "None") else None)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise Tdmr1Error(f"the metadata of {path} is damaged: {error}", "download or export it again") from error


def _check_config(config: Mapping[str, Any]) -> None:
    """Raise ValueError for an adapter's config with a rank, alpha or target modules that are none."""
    rank, alpha, targets = config.get("r", 1), config.get("lora_alpha", 1), config.get("target_modules") or []
    if not isinstance(rank, int):
        raise ValueError(f"its rank is {rank!r}")
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise ValueError(f"its alpha is {alpha!r}")
    if not isinstance(targets, str | list) or not all(isinstance(target, str) for target in targets):
        raise ValueError(f"its target modules are {targets!r}")


def _read_torch(path: Path) -> RawLora:
    """A file of torch.save, of which tensors and plain containers alone are read."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found is None:
            raise _damaged(path) from error
        raise Tdmr1Error(
            f"{path} holds more than tensors ({found[1]}), which could run code when it is loaded",
            "use a safetensors file, or one of torch.save with nothing but tensors",
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise _damaged(path) from error
    tensors = content.get(NAMELESS) if isinstance(content, dict) and NAMELESS in content else content
    if isinstance(tensors, list | tuple) and tensors and all(isinstance(item, Tensor) for item in tensors):
        return RawLora([item.detach() for item in tensors], {})
    if isinstance(tensors, dict) and any(isinstance(key, str) and parse_key(key) for key in tensors):
        return RawLora({str(key): value for key, value in tensors.items() if isinstance(value, Tensor)}, {})
    raise Tdmr1Error(f"{path} holds neither a LoRA nor a list {NAMELESS!r} of tensors", "give a LoRA file")


def _damaged(path: Path) -> Tdmr1Error:
    return Tdmr1Error(f"{path} is cut short, or no file of torch.save with tensors alone", "download it again")


def write_lora(roles: Roles, role: str, folder: Path, metadata: Mapping[str, str]) -> Path:
    """Save a role as diffusers saves LoRAs, with the metadata that keeps alpha and more of it. Returns the file."""
    config = roles.peft_config(role)
    packed = {f"{PREFIX}{key}": sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    header = {**metadata, "format": "pt", "lora_adapter_metadata": json.dumps(packed, indent=2, sort_keys=True)}
    weights = {f"{PREFIX}{name}": weight.contiguous() for name, weight in roles.weights(role).items()}
    save_file(weights, folder / WEIGHT_FILE, metadata=header)
    return folder / WEIGHT_FILE


def write_comfy_lora(roles: Roles, role: str, folder: Path, metadata: Mapping[str, str], family: Family) -> Path:
    """Save a role for ComfyUI: kohya's parts, each with its alpha, on diffusers' module names. Returns the file."""
    prefix, parts = family.comfy_prefix, {"lora_A": "lora_down", "lora_B": "lora_up"}
    weights: dict[str, Tensor] = {}
    for name, weight in roles.weights(role).items():
        module, _, part = name.removesuffix(".weight").rpartition(".")
        weights[f"{prefix}{module}.{parts[part]}.weight"] = weight.contiguous()
        weights[f"{prefix}{module}.alpha"] = torch.tensor(float(roles.shape.alpha))
    save_file(weights, folder / COMFY_FILE, metadata=dict(metadata))
    return folder / COMFY_FILE
