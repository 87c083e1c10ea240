"""Resume: the checkpoint to continue from, the settings, and which of them changed since the run was stopped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tdmr1_core.config import RunConfig, lr_iterations
from tdmr1_core.config_loading import (
    FORMER_DEFAULTS,
    Tree,
    compared,
    from_portable,
    merge,
    read_file,
    resolve,
    with_former_defaults,
)
from tdmr1_core.durable_files import append_durable
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.runs.checkpoints.changes import Changes, find_changes, refused_changes
from tdmr1_core.runs.checkpoints.checkpoint import SETTINGS, iteration_of, latest_checkpoint, read_config
from tdmr1_core.runs.checkpoints.run_config import CONFIG, load_run_config
from tdmr1_core.runs.jsonl import as_lines, keep_lines

CHECKPOINTS, RESUMES = "checkpoints", "resumes.jsonl"


@dataclass(frozen=True)
class ResumePoint:
    """The checkpoint and the settings to continue with, and the settings that changed."""

    config: RunConfig
    checkpoint: Path
    changes: Changes = field(default_factory=dict)

    def record(self, folder: Path, differences: Sequence[str]) -> None:
        """Append a line to the run's `resumes.jsonl`; `differences` describes the inputs that changed."""
        row = {"checkpoint": self.checkpoint.name, "changes": self.changes, "differences": differences}
        keep_lines(folder / RESUMES)
        append_durable(folder / RESUMES, as_lines([row]))


def find_resume_point(folder: Path, iterations: int | None = None, changes: Tree | None = None) -> ResumePoint:
    """The checkpoint and the settings to continue a run with, changed by `changes`.

    With `iterations`, the run gets this total number. Raises Tdmr1Error if no checkpoint is intact, for a number that
    the setting `iterations` refuses, and for settings that are missing or may not change. A setting newer than the run
    may be missing if the checkpoint has the value of `FORMER_DEFAULTS`, with which config.yaml is read.
    """
    config, path = load_run_config(folder, changes), folder / CONFIG
    if iterations is not None:
        checked = load_run_config(folder, merge(changes or {}, {"iterations": iterations})).iterations
        if checked != config.iterations:
            config = _with_iterations(config, checked)
    checkpoint = latest_checkpoint(folder / CHECKPOINTS)
    done, saved = iteration_of(checkpoint), with_former_defaults(from_portable(read_config(checkpoint), folder))
    newer = FORMER_DEFAULTS.keys() - find_changes(saved, compared(config)).keys()
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
    changed = find_changes(compared(former), compared(config))
    if found := refused_changes(changed, former, config):
        refused = {name: list(values) for name, values in found.items()}
        listed = "; ".join(f"{name} was {old} and is now {new}" for name, (old, new) in refused.items())
        extend = "; to extend the run, use `--resume RUN --iterations N`" if "iterations" in refused else ""
        where = f"in {path} or on the command line" if changes else f"in {path}"
        raise Tdmr1Error(
            f"settings {where} changed that a resumed run must keep: {listed}",
            f"restore them, or start a new run with `tdmr1 train CONFIG --output …`{extend}",
            code="resume-settings",
            values={"path": str(path), "changes": refused},
        )
    return ResumePoint(config, checkpoint, changed)


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
