"""LoRA files: safetensors of diffusers, PEFT and kohya, and the authors' published list of tensors without names.

No pickle is executed: torch.load runs with `weights_only=True`. A file is matched to the network on the meta device, so
that every error is found before the weights of the network are loaded.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from tdmr1_core.durable_files import write_durable
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.families import Family
from tdmr1_core.models.lora.alphas import DefaultAlpha
from tdmr1_core.models.lora.key_names import parse_key
from tdmr1_core.models.lora.matching import match_by_name, name_by_position
from tdmr1_core.models.lora.metadata import PREFIX, WEIGHT_FILE, adapter_settings, open_safetensors, weight_file
from tdmr1_core.models.lora.raw import RawLora, widen
from tdmr1_core.models.lora.shape import LoraShape
from tdmr1_core.models.meta_network import MetaNetwork
from tdmr1_core.models.roles import LoraWeights, Roles

COMFY_FILE = "comfyui_lora.safetensors"
NAMELESS = "ema_parameters"
"""The key of the list of tensors in the published checkpoints."""
CONTAINERS = ("state_dict", "module", "lora")
"""Keys under which training tools save the weights of a .ckpt or .bin file."""
BY_POSITION = "matched by position, so swapped tensors of the same shape cannot be detected"


@dataclass(frozen=True)
class LoraFile:
    """A LoRA read from disk. Its B matrices are multiplied by the adapter scale."""

    path: Path
    sha256: str
    layout: str
    shape: LoraShape
    weights: LoraWeights
    scale: float
    """The adapter scale that the B matrices were multiplied by."""

    @property
    def record(self) -> dict[str, Any]:
        """A description as plain data, for the header of a run's config.yaml."""
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
        scale = "" if self.scale == 1 else f", adapter scale {self.scale:g} applied"
        return (
            f"{len(self.weights)} weights of {self.path} ({self.layout}), rank {self.shape.rank}, "
            f"alpha {self.shape.alpha:g}{scale}, sha256 {self.sha256[:16]}"
        )


def read_lora(
    path: Path,
    network: MetaNetwork,
    expected: LoraShape,
    *,
    alpha: DefaultAlpha = None,
    scale: float = 1.0,
    ignore_text_encoder: bool = False,
) -> LoraFile:
    """Read a LoRA file, or the one in a directory, for this network.

    `expected` is the shape of a list without names; it cannot be read from such a file. `alpha` is used for a file with
    names that does not contain its alpha. `ignore_text_encoder` leaves out weights of text encoders. Raises Tdmr1Error
    if the file is missing, damaged, holds more than tensors or does not fit, and if the alpha is unknown: a wrong alpha
    changes the images without any error.
    """
    path = weight_file(path)
    if path.suffix == ".safetensors":
        with open_safetensors(path, "pt") as file:
            metadata = file.metadata() or {}
            named = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        raw = RawLora(named, *adapter_settings(metadata, path))
    else:
        raw = _read_torch(path)
        if isinstance(raw.tensors, dict):
            raw = replace(raw, config=adapter_settings({}, path)[0])
    with path.open("rb") as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    if isinstance(raw.tensors, list):
        tensors = [widen(f"tensor {number}", tensor, path) for number, tensor in enumerate(raw.tensors)]
        weights = name_by_position(tensors, network, expected, path)
        layout, shape = f"published list without names, {BY_POSITION}", expected
    else:
        layout, shape, weights = match_by_name(
            raw, network, expected.targets, alpha, path, ignore_text_encoder=ignore_text_encoder
        )
    if not all(bool(weight.isfinite().all()) for weight in weights.values()):
        raise Tdmr1Error(
            f"{path} holds weights that are not finite",
            "download or export it again",
            code="lora-unreadable",
            values={"path": str(path)},
        )
    if scale != 1:
        weights = {name: weight * scale if ".lora_B." in name else weight for name, weight in weights.items()}
    return LoraFile(path, sha256, layout, shape, weights, scale)


def _read_torch(path: Path) -> RawLora:
    """Read a file of torch.save that holds only tensors and plain containers."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found is None:
            raise _damaged(path) from error
        raise Tdmr1Error(
            f"{path} holds the Python object {found[1]}, which could run code when the file is loaded",
            "use a safetensors file, or a file of torch.save that holds only tensors",
            code="lora-unreadable",
            values={"path": str(path), "object": found[1]},
        ) from error
    except Exception as error:  # the unpickler raises errors of any type for other content
        raise _damaged(path) from error
    tensors = content
    for name in (NAMELESS, *CONTAINERS):
        if isinstance(content, dict) and isinstance(content.get(name), list | tuple | dict):
            tensors = content[name]
            break
    if isinstance(tensors, list | tuple) and tensors and all(isinstance(item, Tensor) for item in tensors):
        return RawLora(list(tensors), {})
    if isinstance(tensors, dict) and any(isinstance(key, str) and parse_key(key) for key in tensors):
        other = [str(key) for key, value in tensors.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
        if other:
            raise Tdmr1Error(
                f"{path} holds values that are no tensors ({len(other)}), such as {other[0]}",
                "save only the weights of the LoRA, best as safetensors",
                code="lora-keys",
                values={"path": str(path), "unknown": other},
            )
        return RawLora(dict(tensors), {})
    raise Tdmr1Error(
        f"{path} holds neither LoRA weights by name nor a list {NAMELESS!r} of tensors",
        "name a LoRA file of diffusers, PEFT or kohya",
        code="lora-keys",
        values={"path": str(path)},
    )


def _damaged(path: Path) -> Tdmr1Error:
    return Tdmr1Error(
        f"{path} cannot be read: it is truncated, or is not a torch.save file of tensors only",
        "download it again",
        code="lora-unreadable",
        values={"path": str(path)},
    )


def write_lora(roles: Roles, role: str, folder: Path, metadata: Mapping[str, str]) -> Path:
    """Save a role in the layout of diffusers, with PEFT's adapter config in the metadata. Returns the file."""
    config = roles.peft_config(role)
    packed = {f"{PREFIX}{key}": sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    header = {**metadata, "format": "pt", "lora_adapter_metadata": json.dumps(packed, indent=2, sort_keys=True)}
    weights = {f"{PREFIX}{name}": weight.contiguous() for name, weight in roles.weights(role).items()}
    write_durable(folder / WEIGHT_FILE, save(weights, metadata=header))
    return folder / WEIGHT_FILE


def write_comfy_lora(roles: Roles, role: str, folder: Path, metadata: Mapping[str, str], family: Family) -> Path:
    """Save a role for ComfyUI: kohya's part names and an alpha for each of diffusers' modules. Returns the file."""
    prefix, parts = family.comfy_prefix, {"lora_A": "lora_down", "lora_B": "lora_up"}
    weights: dict[str, Tensor] = {}
    for name, weight in roles.weights(role).items():
        module, _, part = name.removesuffix(".weight").rpartition(".")
        weights[f"{prefix}{module}.{parts[part]}.weight"] = weight.contiguous()
        weights[f"{prefix}{module}.alpha"] = torch.tensor(float(roles.shape.alpha))
    write_durable(folder / COMFY_FILE, save(weights, metadata=dict(metadata)))
    return folder / COMFY_FILE
