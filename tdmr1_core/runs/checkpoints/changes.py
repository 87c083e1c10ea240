"""Which settings of a run may change after its start: those that do not change what the run learns."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from tdmr1_core.config import RunConfig, lr_iterations
from tdmr1_core.preflight.checks import matches
from tdmr1_core.preflight.option_paths import path_in
from tdmr1_rewards.texts.redaction import REDACTED

HARMLESS = (
    "threads",
    "processes_timeout",
    "model.path",
    "model.lora",
    "model.teacher",
    "model.device",
    "batch.micro_batch",
    "memory.gradient_checkpointing",
    "memory.text_encoders",
    "memory.prompt_cache",
    "memory.prompt_cache_gb",
    "memory.trajectories",
    "memory.attention",
    "memory.compile",
    "scoring.workers",
    "rewards.*.source",
    "rewards.*.batch_size",
    "rewards.*.timeout",
    "rewards.*.retries",
    "rewards.*.on_failure",
    "rewards.*.device",
    "rewards.*.isolated",
    "rewards.*.python",
    "prompts.**",
    "evaluation.**",
    "guard.**",
    "saving.**",
    "tracking",
    "tracking_tags",
    "optimizer.on_not_finite",
)
"""Settings that may change after the start of a run: they do not change what the run learns, except for rounding.

Paths are among them, because the content of files is compared by `fingerprints`. `*` stands for one part of a name,
`**` for all remaining parts.
"""
OPTIONS = "rewards.*.options.**"

Changes = dict[str, tuple[Any, Any]]
"""The former and the new value of each changed setting, by dotted name."""


def find_changes(former: Any, latter: Any, prefix: str = "") -> Changes:
    """The differences between two trees of settings. Lists of equal length are compared item by item.

    A secret that was not stored may have any other value.
    """
    if isinstance(former, list) and isinstance(latter, list) and len(former) == len(latter):
        former, latter = ({str(i): item for i, item in enumerate(items)} for items in (former, latter))
    if isinstance(former, Mapping) and isinstance(latter, Mapping):
        changes: Changes = {}
        for key in dict.fromkeys((*former, *latter)):
            changes |= find_changes(former.get(key), latter.get(key), f"{prefix}{key}.")
        return changes
    return {} if former == latter or REDACTED in (former, latter) else {prefix.rstrip("."): (former, latter)}


def refused_changes(changes: Changes, former: RunConfig, config: RunConfig) -> Changes:
    """The changes that a run does not allow after its start."""
    return {name: values for name, values in changes.items() if not _may_change(name, values, former, config)}


def _may_change(name: str, values: tuple[Any, Any], former: RunConfig, config: RunConfig) -> bool:
    if name in ("iterations", "optimizer.lr_iterations"):  # they may not change the schedule of the learning rates
        return config.optimizer.final_lr == 1 or lr_iterations(former) == lr_iterations(config)
    if name == "model.name":  # a directory or a hub id, whose content is compared
        return all("/" in str(value) for value in values)
    if matches(name, OPTIONS):
        return _is_moved_path(*values)
    return any(matches(name, pattern) for pattern in HARMLESS)


def _is_moved_path(before: Any, now: Any) -> bool:
    """Whether an option of a reward was a path, and is now the path of something that exists."""
    path = path_in(now)
    return path_in(before) is not None and path is not None and os.path.exists(path)
