"""Matches the tensors of a LoRA file to the parameters of a network, by name or by position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.lora.key_names import OTHER_METHODS, TEXT_ENCODERS, Key, flatten_names, module_names, parse_key
from tdmr1_core.models.meta_network import LoraShape, MetaNetwork
from tdmr1_core.models.roles import LoraWeights

RIGHT_BASE = "use the LoRA with the base model it was made for"


@dataclass(frozen=True)
class RawLora:
    """The tensors of a file, by key or as a list without names, and its metadata."""

    tensors: dict[str, Tensor] | list[Tensor]
    config: Mapping[str, Any]
    """PEFT's adapter config; empty if there is none."""
    network_alpha: float | None = None
    """Kohya's alpha for the whole network."""

    def widened(self) -> RawLora:
        """The same tensors in float32, or in float64 where they already are."""

        def widen(tensor: Tensor) -> Tensor:
            return tensor if tensor.dtype == torch.float64 else tensor.float()

        if isinstance(self.tensors, list):
            return replace(self, tensors=[widen(tensor) for tensor in self.tensors])
        return replace(self, tensors={key: widen(tensor) for key, tensor in self.tensors.items()})


def name_by_position(tensors: Sequence[Tensor], network: MetaNetwork, expected: LoraShape, path: Path) -> LoraWeights:
    """Name a list of tensors in the order of the parameters of the same PEFT model.

    Raises Tdmr1Error unless the rank, the number of tensors and every shape agree.
    """
    names = network.lora(expected)
    rank = tensors[0].shape[0] if tensors[0].ndim else 0
    if rank != expected.rank:
        raise Tdmr1Error(
            f"{path} holds a LoRA of rank {rank}, expected {expected.rank}",
            "set rank and alpha of the file with --set model.rank=… --set model.alpha=…: the file itself has no alpha",
            code="lora-mismatch",
            values={"path": str(path), "rank": rank, "expected": expected.rank},
        )
    if len(tensors) != len(names):
        raise Tdmr1Error(
            f"{path} holds {len(tensors)} tensors, but a LoRA for the {network.family.transformer} has {len(names)}",
            RIGHT_BASE,
            code="lora-mismatch",
            values={"path": str(path), "tensors": len(tensors), "expected": len(names)},
        )
    for position, (tensor, (name, shape)) in enumerate(zip(tensors, names.items(), strict=True)):
        if tuple(tensor.shape) != shape:
            raise Tdmr1Error(
                f"tensor {position} of {path} has shape {tuple(tensor.shape)}, but {name} has shape {shape}",
                RIGHT_BASE,
                code="lora-mismatch",
                values={
                    "path": str(path),
                    "position": position,
                    "parameter": name,
                    "shape": list(tensor.shape),
                    "expected": list(shape),
                },
            )
    return dict(zip(names, tensors, strict=True))


def match_by_name(
    raw: RawLora, network: MetaNetwork, targets: tuple[str, ...], alpha: float | Literal["rank"] | None, path: Path
) -> tuple[str, LoraShape, LoraWeights]:
    """The layout, the shape and the weights by canonical name of a file with names.

    `targets` are the expected target modules; `alpha` is used if the file has none. Raises Tdmr1Error if the file does
    not fit the network or has no alpha and none is given.
    """
    assert isinstance(raw.tensors, dict)
    keys = _parse_keys(raw.tensors, path)
    names = module_names(network.family, network.linears)
    modules = _modules(keys, names, flatten_names(names), raw.tensors, network, path)
    rank = _common_rank(modules, raw.config, path)
    common, weights = _scaled(modules, raw, rank, float(rank) if alpha == "rank" else alpha, path)
    shape = _shape(weights, network, LoraShape(rank, common, ()), (raw.config.get("target_modules"), targets))
    expected = network.lora(shape)
    for name, weight in weights.items():
        if tuple(weight.shape) != expected[name]:
            raise Tdmr1Error(
                f"{name} in {path} has shape {tuple(weight.shape)}, but the model needs {expected[name]}",
                RIGHT_BASE,
                code="lora-mismatch",
                values={
                    "path": str(path),
                    "parameter": name,
                    "shape": list(weight.shape),
                    "expected": list(expected[name]),
                },
            )
    flat = any(key.flat for key in keys.values())
    layout = "kohya's names" if flat or raw.network_alpha else "diffusers' or PEFT's names"
    return layout, shape, {name: weights[name] for name in expected}


@dataclass(frozen=True)
class _Module:
    """The LoRA of one module of a file. A fused module has several names. `alpha` is None if the module has none."""

    names: tuple[str, ...]
    down: Tensor  # (rank, in)
    up: Tensor  # (out, rank)
    alpha: float | None


def _common_rank(modules: Sequence[_Module], config: Mapping[str, Any], path: Path) -> int:
    """The rank of all modules. Raises Tdmr1Error if they differ, or if the adapter config has another rank."""
    ranks = sorted({module.down.shape[0] for module in modules} | {module.up.shape[-1] for module in modules})
    if len(ranks) > 1:
        raise Tdmr1Error(
            f"{path} has LoRAs of different ranks ({', '.join(map(str, ranks))})",
            "use a LoRA with a single rank",
            code="lora-unsupported",
            values={"path": str(path), "ranks": ranks},
        )
    (rank,) = ranks
    stated = int(config.get("r", rank))
    if stated != rank:
        raise Tdmr1Error(
            f"the metadata of {path} has rank {stated}, but its weights have rank {rank}",
            "export the LoRA again, or correct the rank `r` in its adapter config",
            code="lora-mismatch",
            values={"path": str(path), "stated": stated, "rank": rank},
        )
    return rank


def _parse_keys(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Key]:
    """The parsed keys. Raises Tdmr1Error unless the file is a plain LoRA of the denoiser."""
    for key in tensors:
        for part, method in OTHER_METHODS.items():
            if part in key:
                raise Tdmr1Error(
                    f"{path} is not a plain LoRA: the key {key} belongs to {method}",
                    "use a plain LoRA",
                    code="lora-unsupported",
                    values={"path": str(path), "key": key, "method": method},
                )
        if key.startswith(TEXT_ENCODERS):
            raise Tdmr1Error(
                f"{path} also changes the text encoder (key {key})",
                "use a LoRA of the denoiser only: text encoders are not trained",
                code="lora-unsupported",
                values={"path": str(path), "key": key},
            )
    parsed = {key: parse_key(key) for key in tensors}
    unknown = [key for key, parts in parsed.items() if parts is None]
    if unknown or not parsed:
        reason = f"unknown keys ({len(unknown)}), such as {unknown[0]}" if unknown else "it has no keys"
        raise Tdmr1Error(
            f"{path} is not a LoRA file: {reason}",
            "name a LoRA file of diffusers, PEFT or kohya",
            code="lora-keys",
            values={"path": str(path), "unknown": unknown},
        )
    return {key: parts for key, parts in parsed.items() if parts is not None}


def _modules(
    keys: Mapping[str, Key],
    names: Mapping[str, tuple[str, ...]],
    flat_names: Mapping[str, tuple[str, ...]],
    tensors: Mapping[str, Tensor],
    network: MetaNetwork,
    path: Path,
) -> list[_Module]:
    """The LoRA of each module. `names` and `flat_names` map the known module names to their modules in diffusers."""
    grouped: dict[tuple[str, ...], dict[str, Tensor]] = {}
    unknown = []
    for key, parts in keys.items():
        found = (flat_names if parts.flat else names).get(parts.module)
        if found is None:
            unknown.append(parts.module)
        else:
            grouped.setdefault(found, {})[parts.part] = tensors[key]
    if unknown:
        count = len(set(unknown))
        raise Tdmr1Error(
            f"{path} does not fit: the {network.family.transformer} lacks modules ({count}), such as {unknown[0]}",
            RIGHT_BASE,
            code="lora-mismatch",
            values={"path": str(path), "unknown": count, "module": unknown[0], "network": network.family.transformer},
        )
    incomplete = [found[0] for found, parts in grouped.items() if not {"down", "up"} <= parts.keys()]
    if incomplete:
        raise Tdmr1Error(
            f"{path} holds only one of the two matrices for {incomplete[0]}",
            "download or export it again",
            code="lora-keys",
            values={"path": str(path), "module": incomplete[0]},
        )
    return [_module(found, parts, path) for found, parts in grouped.items()]


def _module(names: tuple[str, ...], parts: Mapping[str, Tensor], path: Path) -> _Module:
    down, up, alpha = parts["down"], parts["up"], parts.get("alpha")
    valid_alpha = alpha is None or alpha.numel() == 1
    if down.ndim != 2 or up.ndim != 2 or up.shape[0] % len(names) or not valid_alpha:
        raise Tdmr1Error(
            f"the LoRA for {names[0]} in {path} has the shapes {tuple(down.shape)} and {tuple(up.shape)}",
            "only LoRAs of linear layers are supported",
            code="lora-unsupported",
            values={"path": str(path), "module": names[0], "shapes": [list(down.shape), list(up.shape)]},
        )
    return _Module(names, down, up, None if alpha is None else alpha.item())


def _scaled(
    modules: Sequence[_Module], raw: RawLora, rank: int, alpha: float | None, path: Path
) -> tuple[float, LoraWeights]:
    """One alpha for all modules, and the weights by name.

    A module with another alpha has its B matrix multiplied by the ratio. Raises Tdmr1Error if there is no alpha.
    """
    config = raw.config
    if config.get("use_dora") or config.get("alpha_pattern") or config.get("rank_pattern"):
        raise Tdmr1Error(
            f"{path} uses DoRA, or a rank or alpha for each module",
            "use a plain LoRA",
            code="lora-unsupported",
            values={"path": str(path)},
        )
    stated = config.get("lora_alpha", raw.network_alpha)
    if stated is not None and config.get("use_rslora"):
        stated = stated * rank**0.5
    default = stated if stated is not None else alpha
    common = next((module.alpha for module in modules if module.alpha is not None), default)
    if common is None:
        raise Tdmr1Error(
            f"the LoRA file {path} does not contain its alpha, the numerator of the scale alpha / rank",
            f"set it with --set model.alpha=…; if the file has no adapter config, diffusers uses the rank, {rank}",
            code="lora-alpha",
            values={"path": str(path), "rank": rank},
        )
    weights: LoraWeights = {}
    for module in modules:
        module_alpha = module.alpha if module.alpha is not None else (stated if stated is not None else common)
        for name, up in zip(module.names, module.up.chunk(len(module.names)), strict=True):
            weights[f"{name}.lora_A.weight"] = module.down
            weights[f"{name}.lora_B.weight"] = up if module_alpha == common else up * (module_alpha / common)
    return float(common), weights


def _shape(
    weights: LoraWeights, network: MetaNetwork, bare: LoraShape, candidates: tuple[Sequence[str] | None, ...]
) -> LoraShape:
    """The shape with the first of the candidate target modules that selects exactly these weights.

    If none does, every module is listed by its full name.
    """
    for targets in candidates:
        if targets and not isinstance(targets, str):
            shape = LoraShape(bare.rank, bare.alpha, tuple(sorted(targets)))
            try:
                if network.lora(shape).keys() == weights.keys():
                    return shape
            except Tdmr1Error:
                continue
    modules = sorted({name.rsplit(".lora_", 1)[0] for name in weights})
    return LoraShape(bare.rank, bare.alpha, tuple(modules))
