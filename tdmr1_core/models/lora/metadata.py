"""Finds a LoRA file and reads its metadata. It reads no tensors and does not need torch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from tdmr1_core.durable_files import MALFORMED
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.lora.key_names import parse_key
from tdmr1_rewards.texts.documents import parse_json, read_json

WEIGHT_FILE = "pytorch_lora_weights.safetensors"
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "transformer."
SUFFIXES = (".safetensors", ".bin", ".ckpt", ".pt", ".pth")
PEFT_FILES = (PEFT_FILE, "adapter_model.bin")
USUAL = (WEIGHT_FILE, PEFT_FILE, "pytorch_lora_weights.bin", "adapter_model.bin")
"""The names of LoRA files of diffusers and PEFT. In a directory with several of them, the first is read."""

SHARD = re.compile(r"-\d{5}-of-(\d{5})\.")
"""The end of the name of one of several files that a tool saved together, with their number."""

CHANGED_BASE = ("pissa", "olora", "corda", "eva", "loftq", "lora_ga", "loraga")
"""Initializations of PEFT that replace the weights of the base model, or start from its activations."""
PLAIN_INITS = (None, True, False, "gaussian", "orthogonal")
REFUSED_SETTINGS = {
    "use_dora": "DoRA",
    "modules_to_save": "saved modules (modules_to_save)",
    "lora_bias": "biases (lora_bias)",
    "trainable_token_indices": "trained tokens (trainable_token_indices)",
    "layer_replication": "replicated layers (layer_replication)",
    "target_parameters": "LoRAs of bare parameters (target_parameters)",
    "use_qalora": "QALoRA",
    "alora_invocation_tokens": "activated LoRA (alora_invocation_tokens)",
    "arrow_config": "Arrow routing (arrow_config)",
    "use_bdlora": "BD-LoRA",
    "kasa_config": "KaSA",
    "velora_config": "VeLoRA",
    "monteclora_config": "MonteCLoRA",
    "fan_in_fan_out": "transposed weights (fan_in_fan_out)",
}
"""Settings of PEFT's adapter config that make a LoRA more than B A, with what they are."""
WITHOUT_EFFECT = (
    *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "bias", "use_rslora"),
    *("init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "megatron_config"),
    *("megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "qalora_group_size"),
    *("runtime_config", "ensure_weight_tying"),
)
"""The other settings of PEFT's adapter config. They are read, or do not change the output of a trained LoRA."""


def weight_file(path: Path) -> Path:
    """The path itself, or the LoRA file in a directory or in its only subdirectory with one.

    Raises Tdmr1Error if there is none, or if there are several.
    """
    if not path.is_dir():
        if path.is_file():
            _check_whole(path)
            return path
        raise Tdmr1Error(
            f"the LoRA file {path} does not exist",
            "give a .safetensors, .bin or .ckpt file, or its directory",
            code="lora-missing",
            values={"path": str(path)},
        )
    found = _candidates(path)
    if not found:
        found = [file for folder in sorted(path.iterdir()) if folder.is_dir() for file in _candidates(folder)]
    for file in found:
        _check_whole(file)
    if len(found) == 1:
        return found[0]
    names = [str(file.relative_to(path)) for file in found]
    what = f"several files that can be a LoRA: {', '.join(names[:4])}" if found else "no LoRA file"
    raise Tdmr1Error(
        f"the directory {path} holds {what}",
        "name the file",
        code="lora-missing",
        values={"path": str(path), "files": names},
    )


def _check_whole(path: Path) -> None:
    """Raise Tdmr1Error for one of several files of a LoRA, by its name."""
    shard = SHARD.search(path.name)
    if shard is not None and int(shard[1]) > 1:
        raise Tdmr1Error(
            f"{path} is one of {int(shard[1])} files that together are a LoRA",
            "merge them into one safetensors file",
            code="lora-unsupported",
            values={"path": str(path), "files": int(shard[1])},
        )


def _candidates(folder: Path) -> list[Path]:
    """The files of a folder that can be its LoRA: the first usual name, otherwise all files with a known suffix."""
    usual = [folder / name for name in USUAL if (folder / name).is_file()]
    return usual[:1] or sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES and file.is_file())


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
        packed = parse_json(metadata.get("lora_adapter_metadata", "{}"))
        config = {key.removeprefix(PREFIX): value for key, value in packed.items() if key.startswith(PREFIX)}
        beside = path.with_name(PEFT_CONFIG)
        if not config and beside.is_file():
            config = dict(read_json(beside))
        _check_config(config)
        check_plain(config, path)
        network_alpha = metadata.get("ss_network_alpha")
        return config, float(network_alpha) if network_alpha not in (None, "None") else None
    except (OSError, *MALFORMED) as error:
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
        config, _ = adapter_settings(metadata, path)
    except Tdmr1Error:
        return False
    return "lora_alpha" in config or any(key is not None and key.part == "alpha" for key in keys)


def check_plain(config: Mapping[str, Any], path: Path) -> None:
    """Raise Tdmr1Error if PEFT's adapter config describes more than a LoRA of linear layers on an unchanged base."""
    kind, init, bias = config.get("peft_type", "LORA"), config.get("init_lora_weights"), config.get("bias", "none")
    found = [what for name, what in REFUSED_SETTINGS.items() if config.get(name)]
    found += [f"the setting {name}" for name in config.keys() - {*REFUSED_SETTINGS, *WITHOUT_EFFECT} if config[name]]
    hint = "use a plain LoRA, or merge this one into the model and use that directory"
    if kind != "LORA":
        found.insert(0, f"the method {kind}")
    elif bias != "none":
        found.insert(0, f"biases (bias: {bias})")
    elif init not in PLAIN_INITS:
        changed = str(init).lower().startswith(CHANGED_BASE)
        what = "which changed the base model" if changed else "which is not known"
        found.insert(0, f"the initialization {init!r}, {what}")
        hint = "convert it to a plain LoRA: save it with `path_initial_model_for_weight_conversion` of PEFT"
    if found:
        raise Tdmr1Error(
            f"{path} is not a plain LoRA: its adapter config has {found[0]}",
            hint,
            code="lora-unsupported",
            values={"path": str(path), "found": sorted(found)},
        )


def _check_pattern(name: str, pattern: str) -> None:
    """Raise ValueError for a key of rank_pattern or alpha_pattern that is not a regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{name} has the key {pattern!r}, not a regular expression: {error}") from error


def _check_config(config: Mapping[str, Any]) -> None:
    """Raise ValueError for an adapter config whose rank, alpha or target modules have a wrong type or value."""
    rank, alpha, targets = config.get("r", 1), config.get("lora_alpha", 1), config.get("target_modules") or []
    if not isinstance(rank, int):
        raise ValueError(f"the rank is {rank!r}, not an integer")
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise ValueError(f"alpha is {alpha!r}, not a finite number")
    for name in ("rank_pattern", "alpha_pattern"):
        pattern = config.get(name) or {}
        if not isinstance(pattern, dict) or not all(isinstance(value, int | float) for value in pattern.values()):
            raise ValueError(f"{name} is {pattern!r}, not a table of numbers")
        for key in pattern:
            _check_pattern(name, key)
    if not isinstance(config.get("use_rslora", False), bool | None):
        raise ValueError(f"use_rslora is {config['use_rslora']!r}, not true or false")
    if not isinstance(targets, str | list) or not all(isinstance(target, str) for target in targets):
        raise ValueError(f"the target modules are {targets!r}, not text or a list of texts")
