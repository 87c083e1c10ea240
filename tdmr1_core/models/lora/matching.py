"""A LoRA's tensors fitted to a network without weights: by name in any spelling, or by position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.lora.key_names import OTHER_METHODS, TEXT_ENCODERS, Key, flattened, module_names, parse_key
from tdmr1_core.models.meta_network import MetaNetwork
from tdmr1_core.models.roles import LoraShape, LoraWeights

RIGHT_BASE = "use the LoRA with the base model it was made for"


@dataclass(frozen=True)
class RawLora:
    """The tensors of a file before they are fitted to a network: by key, or a list without names."""

    tensors: dict[str, Tensor] | list[Tensor]
    config: Mapping[str, Any]
    """PEFT's adapter config, where the file or its neighbour holds one."""
    network_alpha: float | None = None
    """Kohya's alpha of the whole network."""

    def widened(self) -> RawLora:
        """The same in at least float32."""

        def wide(tensor: Tensor) -> Tensor:
            return tensor if tensor.dtype == torch.float64 else tensor.float()

        if isinstance(self.tensors, list):
            return replace(self, tensors=[wide(tensor) for tensor in self.tensors])
        return replace(self, tensors={key: wide(tensor) for key, tensor in self.tensors.items()})


def named_by_position(tensors: Sequence[Tensor], skeleton: MetaNetwork, expected: LoraShape, path: Path) -> LoraWeights:
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


def fitted(
    raw: RawLora, skeleton: MetaNetwork, targets: tuple[str, ...], alpha: float | Literal["rank"] | None, path: Path
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


def _modules(
    keys: Mapping[str, Key], tensors: Mapping[str, Tensor], skeleton: MetaNetwork, path: Path
) -> list[_Module]:
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
    return [_module(found, parts, path) for found, parts in grouped.items()]


def _module(names: tuple[str, ...], parts: Mapping[str, Tensor], path: Path) -> _Module:
    down, up, alpha = parts["down"], parts["up"], parts.get("alpha")
    whole = alpha is None or alpha.numel() == 1
    if down.ndim != 2 or up.ndim != 2 or up.shape[0] % len(names) or not whole:
        raise Tdmr1Error(
            f"the LoRA for {names[0]} in {path} has the shapes {tuple(down.shape)} and {tuple(up.shape)}",
            "only LoRAs of linear layers are supported",
        )
    return _Module(names, down, up, None if alpha is None else alpha.item())


def _scaled(
    modules: Sequence[_Module], raw: RawLora, rank: int, alpha: float | None, path: Path
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
    weights: LoraWeights, skeleton: MetaNetwork, bare: LoraShape, candidates: tuple[Sequence[str] | None, ...]
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
