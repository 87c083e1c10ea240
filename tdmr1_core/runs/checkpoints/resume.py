"""Resume: the checkpoint to continue from, the settings, and which of them changed since the run was stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tdmr1_core.config import RunConfig, lr_iterations
from tdmr1_core.config_loading import FORMER_DEFAULTS, dump, read_file, resolve, with_former_defaults
from tdmr1_core.durable_files import append_durable, check_links
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.preflight.checks import matches
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
"""Settings that may change at a resume: they do not change what the run learns, except for rounding.

Paths are among them, because the content of files is compared by `fingerprints`. `*` stands for one part of a name,
`**` for all remaining parts.
"""

Changes = dict[str, tuple[Any, Any]]
"""The former and the new value of each changed setting, by dotted name."""


@dataclass(frozen=True)
class ResumePoint:
    """The checkpoint and the settings to continue with, and the settings that changed."""

    config: RunConfig
    checkpoint: Path
    changes: Changes = field(default_factory=dict)

    def record(self, folder: Path, differences: Sequence[str]) -> None:
        """Append a line to the run's `resumes.jsonl`; `differences` describes the inputs that changed."""
        line = json.dumps({"checkpoint": self.checkpoint.name, "changes": self.changes, "differences": differences})
        keep_lines(folder / RESUMES)
        append_durable(folder / RESUMES, f"{line}\n".encode())


def require_run_folder(folder: Path) -> Path:
    """The config.yaml of a run folder. Raises Tdmr1Error for any other folder, and for links that lead out of it."""
    path = folder / CONFIG
    if not path.is_file():
        raise Tdmr1Error(
            f"{folder} is not a run folder: it has no {CONFIG}",
            "give the --output of an earlier run",
            code="run-folder-missing",
            values={"folder": str(folder)},
        )
    check_links(folder)
    return path


def load_run_config(folder: Path) -> RunConfig:
    """The settings of a run folder; settings newer than the run have the value of `FORMER_DEFAULTS`.

    Raises Tdmr1Error if there are none, and for links that lead out of the folder.
    """
    tree = read_file(require_run_folder(folder))
    tree.pop(HEADER, None)
    return resolve([with_former_defaults(tree)])


def find_resume_point(folder: Path, iterations: int | None = None) -> ResumePoint:
    """The checkpoint and the settings to continue a run with. With `iterations`, the run gets this total number.

    Raises Tdmr1Error if no checkpoint is intact, and for settings that are missing or may not change. A setting newer
    than the run may be missing if the checkpoint has the value of `FORMER_DEFAULTS`, with which config.yaml is read.
    """
    config, path = load_run_config(folder), folder / CONFIG
    if iterations is not None and iterations != config.iterations:
        config = _with_iterations(config, iterations)
    checkpoint = latest_checkpoint(folder / CHECKPOINTS)
    done, saved = iteration_of(checkpoint), with_former_defaults(read_config(checkpoint))
    newer = FORMER_DEFAULTS.keys() - find_changes(saved, dump(config)).keys()
    if missing := [name for name in _missing(saved, read_file(path)) if name not in newer]:
        raise Tdmr1Error(
            f"{path} lacks settings: {', '.join(missing)} (is the file truncated?)",
            f"add what is missing; {checkpoint / SETTINGS} has all settings",
            code="config-incomplete",
            values={"path": str(path), "missing": missing},
        )
    if config.iterations < done:
        where = f"in {path}" if iterations is None else "in --iterations"
        raise Tdmr1Error(
            f"iterations is {config.iterations} {where}, but the run has completed {done}",
            f"set it to {done} or more, or start a new run with `tdmr1 train CONFIG --output …`",
            code="resume-settings",
            values={"path": str(path), "iterations": config.iterations, "completed": done},
        )
    former = resolve([saved])
    changes = find_changes(dump(former), dump(config))
    refused = {name: list(values) for name, values in changes.items() if not _may_change(name, former, config)}
    if refused:
        listed = "; ".join(f"{name} was {old} and is now {new}" for name, (old, new) in refused.items())
        extend = "; to extend the run, use `--resume RUN --iterations N`" if "iterations" in refused else ""
        raise Tdmr1Error(
            f"settings in {path} changed that a resumed run must keep: {listed}",
            f"restore them, or start a new run with `tdmr1 train CONFIG --output …`{extend}",
            code="resume-settings",
            values={"path": str(path), "changes": refused},
        )
    return ResumePoint(config, checkpoint, changes)


def find_changes(former: Any, latter: Any, prefix: str = "") -> Changes:
    """The differences between two trees of settings. Lists of equal length are compared item by item."""
    if isinstance(former, list) and isinstance(latter, list) and len(former) == len(latter):
        former, latter = ({str(i): item for i, item in enumerate(items)} for items in (former, latter))
    if isinstance(former, Mapping) and isinstance(latter, Mapping):
        changes: Changes = {}
        for key in dict.fromkeys((*former, *latter)):
            changes |= find_changes(former.get(key), latter.get(key), f"{prefix}{key}.")
        return changes
    return {} if former == latter else {prefix.rstrip("."): (former, latter)}


def _missing(whole: Mapping[str, Any], part: Any, prefix: str = "") -> list[str]:
    """The dotted names in the tree `whole` that the tree `part` lacks. Lists are not searched."""
    found = part if isinstance(part, Mapping) else {}
    names = []
    for key, value in whole.items():
        if key not in found:
            names.append(prefix + key)
        elif isinstance(value, Mapping):
            names += _missing(value, found[key], f"{prefix}{key}.")
    return names


def _with_iterations(config: RunConfig, iterations: int) -> RunConfig:
    """The settings with another number of iterations and the same schedule of the learning rates."""
    optimizer = config.optimizer
    if optimizer.final_lr != 1:
        optimizer = optimizer.model_copy(update={"lr_iterations": lr_iterations(config)})
    return config.model_copy(update={"iterations": iterations, "optimizer": optimizer})


def _may_change(name: str, former: RunConfig, config: RunConfig) -> bool:
    if name in ("iterations", "optimizer.lr_iterations"):  # they may not change the schedule of the learning rates
        return config.optimizer.final_lr == 1 or lr_iterations(former) == lr_iterations(config)
    return any(matches(name, pattern) for pattern in HARMLESS)
