"""LoRA files: diffusers', PEFT's and kohya's safetensors, and the published list of tensors without names.

Reading unpickles nothing: torch.load runs with `weights_only=True`. A file is fitted to the network's skeleton, so that
whatever is wrong with it is said before any weight of the network is loaded.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.lora_names import OTHER_METHODS, TEXT_ENCODERS, Key, flattened, module_names, parse_key
from tdmr1_core.models.roles import LoraShape, LoraWeights, Roles
from tdmr1_core.models.skeleton import Skeleton

WEIGHT_FILE = "pytorch_lora_weights.safetensors"
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
COMFY_FILE = "comfyui_lora.safetensors"
PREFIX = "transformer."
NAMELESS = "ema_parameters"
"""Where the published checkpoints keep their list of tensors."""
BY_POSITION = "by position: two tensors of one shape that had changed places could not be noticed"
RIGHT_BASE = "use the LoRA with the base model it was made for"


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


@dataclass(frozen=True)
class _Raw:
    """The tensors of a file before they are fitted to a network: by key, or a list without names."""

    tensors: dict[str, Tensor] | list[Tensor]
    config: Mapping[str, Any]
    """PEFT's adapter config, where the file or its neighbour holds one."""
    network_alpha: float | None = None
    """Kohya's alpha of the whole network."""


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
    raw = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if isinstance(raw.tensors, list):
        weights = _named_by_position(raw.tensors, skeleton, expected, path)
        layout, shape = f"the published list without names, {BY_POSITION}", expected
    else:
        layout, shape, weights = _fitted(raw, skeleton, expected.targets, alpha, path)
    if not all(bool(weight.isfinite().all()) for weight in weights.values()):
        raise Tdmr1Error(f"{path} holds numbers that are not finite", "download or export it again")
    if scale != 1:
        weights = {name: weight * scale if ".lora_B." in name else weight for name, weight in weights.items()}
    return LoraFile(path, sha256, layout, shape, weights, scale)


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


def _read_safetensors(path: Path) -> _Raw:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise Tdmr1Error(
            f"{path} is not a readable safetensors file: {error}", "download or export it again"
        ) from error
    try:
        packed = json.loads(metadata.get("lora_adapter_metadata", "{}"))
        config = {key.removeprefix(PREFIX): value for key, value in packed.items() if key.startswith(PREFIX)}
        neighbour = path.with_name(PEFT_CONFIG)
        if not config and neighbour.is_file():
            config = dict(json.loads(neighbour.read_text(encoding="utf-8")))
        network_alpha = metadata.get("ss_network_alpha")
        return _Raw(tensors, config, float(network_alpha) if network_alpha not in (None, "None") else None)
    except (ValueError, TypeError, AttributeError) as error:
        raise Tdmr1Error(f"the metadata of {path} is damaged: {error}", "download or export it again") from error


def _read_torch(path: Path) -> _Raw:
    """A file of torch.save, of which tensors and plain containers alone are read."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f" ({found[1]})" if found else ""
        raise Tdmr1Error(
            f"{path} holds more than tensors{what}, which could run code when it is loaded",
            "use a safetensors file, or one of torch.save with nothing but tensors",
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise Tdmr1Error(f"{path} is cut short or no file of torch.save", "download it again") from error
    tensors = content.get(NAMELESS) if isinstance(content, dict) and NAMELESS in content else content
    if isinstance(tensors, list | tuple) and tensors and all(isinstance(item, Tensor) for item in tensors):
        return _Raw([item.detach() for item in tensors], {})
    if isinstance(tensors, dict) and any(isinstance(key, str) and parse_key(key) for key in tensors):
        return _Raw({str(key): value for key, value in tensors.items() if isinstance(value, Tensor)}, {})
    raise Tdmr1Error(f"{path} holds neither a LoRA nor a list {NAMELESS!r} of tensors", "give a LoRA file")


def _named_by_position(tensors: Sequence[Tensor], skeleton: Skeleton, expected: LoraShape, path: Path) -> LoraWeights:
    """The names that the same PEFT model gives to its parameters, in their order; count and every shape must agree."""
    names = skeleton.lora(expected)
    rank = tensors[0].shape[0] if tensors[0].ndim else 0
    if rank != expected.rank:
        raise Tdmr1Error(
            f"{path} holds a LoRA of rank {rank}, not {expected.rank}",
            "a list without names says no alpha: give both with --set model.rank=… --set model.alpha=…",
        )
    if len(tensors) != len(names):
        raise Tdmr1Error(
            f"{path} holds {len(tensors)} tensors, but a LoRA on this {skeleton.family.transformer} has {len(names)}",
            RIGHT_BASE,
        )
    for position, (tensor, (name, shape)) in enumerate(zip(tensors, names.items(), strict=True)):
        if tuple(tensor.shape) != shape:
            raise Tdmr1Error(
                f"tensor {position} of {path} is {tuple(tensor.shape)}, but {name} of the model is {shape}", RIGHT_BASE
            )
    return dict(zip(names, tensors, strict=True))


def _fitted(
    raw: _Raw, skeleton: Skeleton, targets: tuple[str, ...], alpha: float | Literal["rank"] | None, path: Path
) -> tuple[str, LoraShape, LoraWeights]:
    """Layout, shape and weights by canonical name of a file with names."""
    assert isinstance(raw.tensors, dict)
    keys = _parsed(raw.tensors, path)
    modules = _modules(keys, raw.tensors, skeleton, path)
    ranks = {module.down.shape[0] for module in modules}
    if len(ranks) > 1 or any(module.up.shape[-1] not in ranks for module in modules):
        raise Tdmr1Error(
            f"{path} has LoRAs of different ranks ({', '.join(map(str, sorted(ranks)))})", "use one of a single rank"
        )
    rank = ranks.pop()
    told = int(raw.config.get("r", rank))
    if told != rank:
        raise Tdmr1Error(f"{path} says rank {told}, but its weights are of rank {rank}", "export it again")
    common, weights = _scaled(modules, raw, rank, float(rank) if alpha == "rank" else alpha, path)
    shape = _shape(weights, skeleton, LoraShape(rank, common, ()), (raw.config.get("target_modules"), targets))
    needed = skeleton.lora(shape)
    for name, weight in weights.items():
        if tuple(weight.shape) != needed[name]:
            raise Tdmr1Error(f"{path}: {name} is {tuple(weight.shape)}, the model needs {needed[name]}", RIGHT_BASE)
    flat = any(key.flat for key in keys.values())
    layout = "kohya's names" if flat or raw.network_alpha else "diffusers' or PEFT's names"
    return layout, shape, {name: weights[name] for name in needed}


@dataclass(frozen=True)
class _Module:
    """One LoRA of a file, on one module or a fused one; its alpha where the file says it there."""

    names: tuple[str, ...]
    down: Tensor
    up: Tensor
    alpha: float | None


def _parsed(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Key]:
    """Every key taken apart. Raises Tdmr1Error for what is not a plain LoRA of the denoiser."""
    for key in tensors:
        for sign, method in OTHER_METHODS.items():
            if sign in key:
                raise Tdmr1Error(f"{path} is no plain LoRA but {method} ({key})", "use a LoRA without it")
        if key.startswith(TEXT_ENCODERS):
            raise Tdmr1Error(
                f"{path} changes the text encoder as well ({key})",
                "use a LoRA of the denoiser alone: nothing else is trained",
            )
    parsed = {key: parse_key(key) for key in tensors}
    strange = [key for key, parts in parsed.items() if parts is None]
    if strange or not parsed:
        what = f"such as {strange[0]}" if strange else "it is empty"
        raise Tdmr1Error(f"{path} is no LoRA file: {len(strange)} unknown keys, {what}", "give a LoRA file")
    return {key: parts for key, parts in parsed.items() if parts is not None}


def _modules(keys: Mapping[str, Key], tensors: Mapping[str, Tensor], skeleton: Skeleton, path: Path) -> list[_Module]:
    names = module_names(skeleton.family, skeleton.linears)
    flat_names = flattened(names)
    grouped: dict[tuple[str, ...], dict[str, Tensor]] = {}
    unknown = []
    for key, parts in keys.items():
        found = (flat_names if parts.flat else names).get(parts.module)
        if found is None:
            unknown.append(parts.module)
        else:
            grouped.setdefault(found, {})[parts.part] = tensors[key]
    if unknown:
        raise Tdmr1Error(
            f"{path} does not fit: {len(set(unknown))} of its modules are not in the {skeleton.family.transformer}, "
            f"such as {unknown[0]}",
            RIGHT_BASE,
        )
    incomplete = [found[0] for found, parts in grouped.items() if not {"down", "up"} <= parts.keys()]
    if incomplete:
        raise Tdmr1Error(f"{path} holds half of a LoRA for {incomplete[0]}", "download or export it again")
    return [
        _Module(found, parts["down"], parts["up"], float(parts["alpha"]) if "alpha" in parts else None)
        for found, parts in grouped.items()
    ]


def _scaled(
    modules: Sequence[_Module], raw: _Raw, rank: int, alpha: float | None, path: Path
) -> tuple[float, LoraWeights]:
    """One alpha for all, and the weights by name: what a module's own alpha differs by is folded into its B."""
    config = raw.config
    if config.get("use_dora") or config.get("alpha_pattern") or config.get("rank_pattern"):
        raise Tdmr1Error(f"{path} is a LoRA with DoRA or with alphas that differ by module", "use a plain one")
    said = config.get("lora_alpha", raw.network_alpha)
    if said is not None and config.get("use_rslora"):
        said = said * rank**0.5
    common = next((module.alpha for module in modules if module.alpha is not None), said if said is not None else alpha)
    if common is None:
        raise Tdmr1Error(
            f"{path} does not say its alpha",
            f"give it with --set model.alpha=…; a file that diffusers loads as it is has {rank}, its rank",
        )
    weights: LoraWeights = {}
    for module in modules:
        own = module.alpha if module.alpha is not None else (said if said is not None else common)
        for name, up in zip(module.names, module.up.chunk(len(module.names)), strict=True):
            weights[f"{name}.lora_A.weight"] = module.down
            weights[f"{name}.lora_B.weight"] = up if own == common else up * (own / common)
    return float(common), weights


def _shape(
    weights: LoraWeights, skeleton: Skeleton, bare: LoraShape, candidates: tuple[Sequence[str] | None, ...]
) -> LoraShape:
    """Rank and alpha with the shortest target modules that mean these weights and no others."""
    for targets in candidates:
        if targets and not isinstance(targets, str):
            shape = LoraShape(bare.rank, bare.alpha, tuple(sorted(targets)))
            try:
                if skeleton.lora(shape).keys() == weights.keys():
                    return shape
            except Tdmr1Error:
                continue
    modules = sorted({name.rsplit(".lora_", 1)[0] for name in weights})
    return LoraShape(bare.rank, bare.alpha, tuple(modules))


def write_lora(roles: Roles, role: str, folder: Path, metadata: Mapping[str, str]) -> Path:
    """Save a role as diffusers saves LoRAs, with the metadata that keeps alpha and more of it. Returns the file."""
    config = roles.peft_config(role)
    packed = {f"{PREFIX}{key}": sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    header = {**metadata, "format": "pt", "lora_adapter_metadata": json.dumps(packed, indent=2, sort_keys=True)}
    weights = {f"{PREFIX}{name}": weight.contiguous() for name, weight in roles.weights(role).items()}
    save_file(weights, folder / WEIGHT_FILE, metadata=header)
    return folder / WEIGHT_FILE


def write_comfy_lora(roles: Roles, role: str, folder: Path, metadata: Mapping[str, str]) -> Path:
    """Save a role for ComfyUI: kohya's parts, each with its alpha, on diffusers' module names. Returns the file."""
    parts = {"lora_A": "lora_down", "lora_B": "lora_up"}
    weights: dict[str, Tensor] = {}
    for name, weight in roles.weights(role).items():
        module, _, part = name.removesuffix(".weight").rpartition(".")
        weights[f"{PREFIX}{module}.{parts[part]}.weight"] = weight.contiguous()
        weights[f"{PREFIX}{module}.alpha"] = torch.tensor(float(roles.shape.alpha))
    save_file(weights, folder / COMFY_FILE, metadata=dict(metadata))
    return folder / COMFY_FILE
