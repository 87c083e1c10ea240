"""Matches the tensors of a LoRA file to the parameters of a network, by name or by position."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.lora.alphas import DefaultAlpha, StatedModule, module_alphas
from tdmr1_core.models.lora.key_names import (
    BIAS,
    OTHER_METHODS,
    SAVED_MODULES,
    TEXT_ENCODERS,
    WHOLE_WEIGHT,
    Key,
    ModuleNames,
    parse_key,
)
from tdmr1_core.models.lora.original_names import Source
from tdmr1_core.models.lora.raw import RawLora, widen
from tdmr1_core.models.lora.shape import LoraShape
from tdmr1_core.models.meta_network import MetaNetwork
from tdmr1_core.models.roles import LoraWeights

RIGHT_BASE = "use the LoRA with the base model it was made for"
CONVERT = "use a plain LoRA of linear layers, or merge it into the model and use that directory"


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


@dataclass(frozen=True)
class _Module:
    """The LoRA of one module of a file, as alpha / rank times up @ down."""

    source: Source
    down: Tensor  # (rank, in)
    up: Tensor  # (out, rank)
    alpha: float
    """The scale times the rank of this module."""

    @property
    def rank(self) -> int:
        """The rank of this module."""
        return self.down.shape[0]


def match_by_name(
    raw: RawLora,
    network: MetaNetwork,
    targets: tuple[str, ...],
    alpha: DefaultAlpha,
    path: Path,
    *,
    ignore_text_encoder: bool = False,
) -> tuple[str, LoraShape, LoraWeights]:
    """The layout, the shape and the weights by canonical name of a file with names.

    All modules get one rank, the largest, and one alpha: smaller matrices are padded with zeros, and B matrices are
    multiplied by the ratio of the scales, so that the update of every weight is the same as in the file. `targets` are
    the expected target modules; `alpha` is used if the file has none. `ignore_text_encoder` leaves out the keys of text
    encoders. Raises Tdmr1Error if the file does not fit the network, is not a plain LoRA, or has no alpha and none is
    given.
    """
    assert isinstance(raw.tensors, dict)
    keys = _parse_keys(raw.tensors, path, ignore_text_encoder=ignore_text_encoder)
    widened = {key: widen(f"the key {key}", raw.tensors[key], path) for key in keys}
    raw = replace(raw, tensors=raw.tensors | widened)
    parts = _find_modules(keys, network, path)
    modules = _modules(parts, raw, alpha, path)
    separate = [each for module in modules for each in _split(module, network, path)]
    order = {name: position for position, name in enumerate(network.linears)}
    separate.sort(key=lambda module: order[module.source.modules[0]])
    rank = max(module.rank for module in separate)
    common = next(module.alpha for module in separate if module.rank == rank)
    weights: LoraWeights = {}
    for module in separate:
        (name,) = module.source.modules
        factor = (module.alpha / module.rank) / (common / rank)
        missing = rank - module.rank
        up = module.up if factor == 1 else module.up * factor
        weights[f"{name}.lora_A.weight"] = functional.pad(module.down, (0, 0, 0, missing))  # (rank, in)
        weights[f"{name}.lora_B.weight"] = functional.pad(up, (0, missing))  # (out, rank)
    shape = find_shape(weights, network, LoraShape(rank, common, ()), (raw.config.get("target_modules"), targets))
    flat = all("." not in key.module for key in keys.values())
    translated = any(name != source.modules[0] for source, (name, _) in parts.items())
    layout = "names of the original code" if translated else "diffusers' or PEFT's names"
    layout = "kohya's names" if flat or raw.network_alpha else layout
    # PEFT also selects modules whose names end with the name of one outside of blocks: zeros, which training keeps
    return layout, shape, {name: weights.get(name, torch.zeros(size)) for name, size in network.lora(shape).items()}


def _parse_keys(tensors: Mapping[str, Tensor], path: Path, *, ignore_text_encoder: bool = False) -> dict[str, Key]:
    """The parsed keys, sorted. Raises Tdmr1Error unless the file is a plain LoRA of the denoiser."""
    _check_no_network(tensors, path)
    of_encoder = [key for key in tensors if TEXT_ENCODERS.match(key)]
    if of_encoder and not ignore_text_encoder:
        raise Tdmr1Error(
            f"{path} also changes a text encoder ({len(of_encoder)} keys, such as {of_encoder[0]})",
            "text encoders are not trained; set model.ignore_text_encoder_lora=true to use the rest of the file",
            code="lora-unsupported",
            values={"path": str(path), "key": of_encoder[0]},
        )
    used = sorted(tensors.keys() - set(of_encoder))
    parsed = {key: parse_key(key) for key in used}
    for key in used:
        method = _method(key)
        if method is None and WHOLE_WEIGHT.fullmatch(key) and any(parsed.values()):
            method = SAVED_MODULES
        if method is not None:
            raise Tdmr1Error(
                f"{path} is not a plain LoRA: the key {key} belongs to {method}",
                CONVERT,
                code="lora-unsupported",
                values={"path": str(path), "key": key, "method": method},
            )
    unknown = [key for key, parts in parsed.items() if parts is None]
    if unknown or not parsed:
        reason = f"unknown keys ({len(unknown)}), such as {unknown[0]}" if unknown else "it has no keys"
        if not unknown and of_encoder:
            reason += " but those of text encoders"
        raise Tdmr1Error(
            f"{path} is not a LoRA file: {reason}",
            "name a LoRA file of diffusers, PEFT or kohya",
            code="lora-keys",
            values={"path": str(path), "unknown": unknown},
        )
    return {key: parts for key, parts in parsed.items() if parts is not None}


def _method(key: str) -> str | None:
    """The method other than a plain LoRA that a key belongs to."""
    return next((name for name, pattern in OTHER_METHODS.items() if re.search(pattern, key)), None)


def _check_no_network(keys: Iterable[str], path: Path) -> None:
    """Raise Tdmr1Error for the weights of a whole network: no key is one of a LoRA, and most are weights and biases."""
    names = sorted(keys)
    weights = [key for key in names if WHOLE_WEIGHT.fullmatch(key) or BIAS.fullmatch(key)]
    if 2 * len(weights) <= len(names) or any(parse_key(key) or _method(key) not in (None, "biases") for key in names):
        return
    raise Tdmr1Error(
        f"{path} is not a LoRA file: it holds the weights of a whole network, such as {weights[0]}",
        "name a LoRA file of diffusers, PEFT or kohya; use --model-path for a pipeline directory with other weights",
        code="lora-keys",
        values={"path": str(path), "unknown": names},
    )


def _find_modules(
    keys: Mapping[str, Key], network: MetaNetwork, path: Path
) -> dict[Source, tuple[str, dict[str, str]]]:
    """For each source, its name as PEFT's patterns see it, and the keys of its parts.

    Raises Tdmr1Error for modules that are not known, for two sources of one module, and for half of a LoRA.
    """
    names = ModuleNames(network.family.transformer, network.linears)
    grouped: dict[Source, tuple[str, dict[str, str]]] = {}
    users: dict[tuple[str, str], str] = {}
    unknown = []
    for key, parsed in keys.items():
        found = names.find(parsed.module)
        if found is None:
            unknown.append(parsed.module)
            continue
        source, name = found
        for module in source.modules:
            other = users.setdefault((module, parsed.part), key)
            if other != key:
                raise Tdmr1Error(
                    f"{path} has two LoRAs for {module}: the keys {other} and {key}",
                    "remove one of them from the file, or merge the two",
                    code="lora-unsupported",
                    values={"path": str(path), "module": module, "keys": [other, key]},
                )
        grouped.setdefault(source, (name, {}))[1][parsed.part] = key
    if unknown:
        unknown = sorted(set(unknown))
        raise _unknown_modules(unknown, names.other_model(unknown), network, path)
    for source, (_, parts) in grouped.items():
        if not {"down", "up"} <= parts.keys():
            raise Tdmr1Error(
                f"{path} holds only one of the two matrices for {source.modules[0]}",
                "download or export it again",
                code="lora-keys",
                values={"path": str(path), "module": source.modules[0]},
            )
    return grouped


def _unknown_modules(unknown: Sequence[str], model: str | None, network: MetaNetwork, path: Path) -> Tdmr1Error:
    of_model = "" if model is None else f" (the names are those of {model})"
    return Tdmr1Error(
        f"{path} has LoRAs for modules ({len(unknown)}) that are no linear layers of the {network.family.transformer}"
        f"{of_model}, such as {unknown[0]}",
        "convert the file to the names of diffusers, or remove these keys; if the names are those of another network, "
        + RIGHT_BASE,
        code="lora-mismatch",
        values={
            "path": str(path),
            "unknown": len(unknown),
            "module": unknown[0],
            "network": network.family.transformer,
            "model": model,
        },
    )


def _modules(
    found: Mapping[Source, tuple[str, Mapping[str, str]]], raw: RawLora, alpha: DefaultAlpha, path: Path
) -> list[_Module]:
    """The LoRA of each module of the file. Raises Tdmr1Error unless all are of linear layers and have a known alpha."""
    assert isinstance(raw.tensors, dict)
    matrices = [_matrices(source, parts, raw.tensors, path) for source, (_, parts) in found.items()]
    stated = [
        StatedModule(source.modules[0], name, down.shape[0], given)
        for (source, (name, _)), (down, _, given) in zip(found.items(), matrices, strict=True)
    ]
    alphas = module_alphas(raw, stated, alpha, path)
    return [
        _Module(source, down, up, value) for source, (down, up, _), value in zip(found, matrices, alphas, strict=True)
    ]


def _matrices(
    source: Source, parts: Mapping[str, str], tensors: Mapping[str, Tensor], path: Path
) -> tuple[Tensor, Tensor, float | None]:
    """A (rank, in), B (out, rank) and the alpha tensor of a module. Raises Tdmr1Error for other shapes."""
    down, up = tensors[parts["down"]], tensors[parts["up"]]
    given = tensors[parts["alpha"]] if "alpha" in parts else None
    valid_alpha = given is None or given.numel() == 1
    if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1] or not down.shape[0] or not valid_alpha:
        raise Tdmr1Error(
            f"the LoRA for {source.modules[0]} in {path} has the shapes {tuple(down.shape)} and {tuple(up.shape)}",
            "a LoRA of a linear layer has the shapes (rank, in) and (out, rank)",
            code="lora-unsupported",
            values={"path": str(path), "module": source.modules[0], "shapes": [list(down.shape), list(up.shape)]},
        )
    return down, up, None if given is None else float(given.item())


def _split(module: _Module, network: MetaNetwork, path: Path) -> Iterator[_Module]:
    """The LoRA of each module of diffusers. Raises Tdmr1Error if a shape differs from that of the network.

    Of a fused module, columns of B that are 0 are removed with the rows of A that they multiply, so that the parts of a
    block-diagonal B keep their rank.
    """
    shapes = [network.linears[name] for name in module.source.modules]
    wanted = (sum(rows for rows, _ in shapes), shapes[0][1])
    found = (module.up.shape[0], module.down.shape[1])
    if (module.up.shape[1], module.down.shape[0]) == wanted != found:
        raise Tdmr1Error(
            f"the matrices of the LoRA for {module.source.modules[0]} in {path} are transposed or swapped: "
            f"{tuple(module.down.shape)} and {tuple(module.up.shape)}",
            "a LoRA of a linear layer has the shapes (rank, in) and (out, rank)",
            code="lora-unsupported",
            values={
                "path": str(path),
                "module": module.source.modules[0],
                "shapes": [list(module.down.shape), list(module.up.shape)],
            },
        )
    if found != wanted:
        raise Tdmr1Error(
            f"the LoRA for {module.source.modules[0]} in {path} is made for a layer with {found[1]} inputs and "
            f"{found[0]} outputs, but that of the model has {wanted[1]} and {wanted[0]}",
            RIGHT_BASE,
            code="lora-mismatch",
            values={
                "path": str(path),
                "module": module.source.modules[0],
                "shape": [found[0], found[1]],
                "expected": [wanted[0], wanted[1]],
            },
        )
    up = torch.cat(module.up.chunk(2)[::-1]) if module.source.swapped else module.up
    for name, part in zip(module.source.modules, up.split([rows for rows, _ in shapes]), strict=True):
        down, alpha = module.down, module.alpha
        used = part.abs().sum(0) != 0
        if len(module.source.modules) > 1 and 0 < int(used.sum()) < module.rank:
            down, part = down[used], part[:, used]
            alpha = module.alpha / module.rank * len(down)
        yield replace(module, source=Source((name,)), down=down, up=part, alpha=alpha)


def find_shape(
    names: Collection[str], network: MetaNetwork, bare: LoraShape, candidates: tuple[Sequence[str] | None, ...]
) -> LoraShape:
    """The shape with the first of the candidate target modules that selects exactly the weights with these names.

    If none does, every module is listed by its full name.
    """
    for targets in candidates:
        if targets and not isinstance(targets, str):
            shape = LoraShape(bare.rank, bare.alpha, tuple(sorted(targets)))
            try:
                if network.lora(shape).keys() == set(names):
                    return shape
            except Tdmr1Error:
                continue
    modules = sorted({name.rsplit(".lora_", 1)[0] for name in names})
    return LoraShape(bare.rank, bare.alpha, tuple(modules))
