"""Where a run goes on: its settings, an intact checkpoint, and which settings were changed in between."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tdmr1_core.config import RunConfig
from tdmr1_core.config_loading import dump, read_file, resolve
from tdmr1_core.durable_files import append_durable, check_links
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.runs.checkpoints.checkpoint import SETTINGS, iteration_of, latest_checkpoint, read_config
from tdmr1_core.runs.checkpoints.fingerprints import CONFIG, HEADER
from tdmr1_core.runs.jsonl import keep_lines

CHECKPOINTS, RESUMES = "checkpoints", "resumes.jsonl"
HARMLESS = (
    "threads",
    "model.path",
    "model.lora",
    "model.teacher",
    "model.device",
    "batch.micro_batch",
    "memory.gradient_checkpointing",
    "memory.text_encoders",
    "memory.prompt_cache",
    "memory.trajectories",
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
    "optimizer.on_not_finite",
)
"""Settings that may change in the middle of a run: what is learnt stays the same, up to rounding.

Of paths that is seen by what lies there (`foundations`), not by where. `*` stands for one part of a name, `**` for all
the rest.
"""

Changes = dict[str, tuple[Any, Any]]
"""Values before and after by dotted name."""


@dataclass(frozen=True)
class ResumePoint:
    """The checkpoint to continue at, the settings to continue with, and what is new in them."""

    config: RunConfig
    checkpoint: Path
    changes: Changes = field(default_factory=dict)

    def record(self, folder: Path, differences: Sequence[str]) -> None:
        """Add a line to the run's `resumes.jsonl`, with what of its foundations is no longer the same."""
        line = json.dumps({"checkpoint": self.checkpoint.name, "changes": self.changes, "differences": differences})
        keep_lines(folder / RESUMES)
        append_durable(folder / RESUMES, f"{line}\n".encode())


def load_run_config(folder: Path) -> RunConfig:
    """The resolved settings of a run folder. Raises Tdmr1Error if there are none, or the folder's links lead out."""
    path = folder / CONFIG
    if not path.is_file():
        raise Tdmr1Error(f"{folder} is not a run folder: it has no {CONFIG}", "give the --output of an earlier run")
    check_links(folder)
    tree = read_file(path)
    tree.pop(HEADER, None)
    return resolve([tree])


def find_resume_point(folder: Path) -> ResumePoint:
    """Where and how to go on. Raises Tdmr1Error without an intact checkpoint, and for settings that can't change."""
    config = load_run_config(folder)
    checkpoint = latest_checkpoint(folder / CHECKPOINTS)
    done, kept = iteration_of(checkpoint), read_config(checkpoint)
    if missing := _missing(kept, read_file(folder / CONFIG)):
        raise Tdmr1Error(
            f"{folder / CONFIG} says nothing of {', '.join(missing)}: was it cut off?",
            f"put back what is missing; {checkpoint / SETTINGS} has all of it",
        )
    if config.iterations < done:
        raise Tdmr1Error(
            f"iterations is {config.iterations} in {folder / CONFIG}, and {done} are done already",
            f"set it to {done} or more there, or begin a new run with `tdmr1 train CONFIG --output …`",
        )
    changes = find_changes(dump(resolve([kept])), dump(config))
    refused = {name: values for name, values in changes.items() if not _may_change(name, config)}
    if refused:
        told = "; ".join(f"{name} was {old} and is now {new}" for name, (old, new) in refused.items())
        raise Tdmr1Error(
            f"{folder / CONFIG} is not what the run began with: {told}",
            "put it back, or begin a new run with `tdmr1 train CONFIG --output …`",
        )
    return ResumePoint(config, checkpoint, changes)


def find_changes(former: Any, latter: Any, prefix: str = "") -> Changes:
    """What differs between two trees of settings; lists of equal length are compared item by item."""
    if isinstance(former, list) and isinstance(latter, list) and len(former) == len(latter):
        former, latter = ({str(i): item for i, item in enumerate(items)} for items in (former, latter))
    if isinstance(former, Mapping) and isinstance(latter, Mapping):
        changes: Changes = {}
        for key in dict.fromkeys((*former, *latter)):
            changes |= find_changes(former.get(key), latter.get(key), f"{prefix}{key}.")
        return changes
    return {} if former == latter else {prefix.rstrip("."): (former, latter)}


def _missing(whole: Mapping[str, Any], part: Any, prefix: str = "") -> list[str]:
    """The dotted names of one tree of settings that another one lacks, but for what lies in lists."""
    found = part if isinstance(part, Mapping) else {}
    names = []
    for key, value in whole.items():
        if key not in found:
            names.append(prefix + key)
        elif isinstance(value, Mapping):
            names += _missing(value, found[key], f"{prefix}{key}.")
    return names


def _may_change(name: str, config: RunConfig) -> bool:
    if name == "iterations":  # the length of the schedule, where there is one
        return config.optimizer.final_lr == 1
    return any(_matches(name.split("."), pattern.split(".")) for pattern in HARMLESS)


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    if pattern[-1] == "**":
        pattern, parts = pattern[:-1], parts[: len(pattern) - 1]
    return len(parts) == len(pattern) and all(map(fnmatchcase, parts, pattern))
