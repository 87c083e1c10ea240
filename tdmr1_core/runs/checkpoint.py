"""Checkpoints: weights and optimiser states as safetensors, counters as JSON, put in place by one rename."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tdmr1_core.configure import fingerprint
from tdmr1_core.errors import Tdmr1Error

if TYPE_CHECKING:
    from tdmr1_core.engine import Engine

WEIGHTS, OPTIMIZERS, STATE, LATEST = "weights.safetensors", "optimizers.safetensors", "state.json", "latest"


def save_checkpoint(engine: Engine, folder: Path, keep: int) -> Path:
    """Write `folder/step-NNNNNN`, point `folder/latest` at it and drop all but the newest `keep`. Returns its path."""
    target = folder / f"step-{engine.iteration_index:06d}"
    building = folder / f".{target.name}.tmp"
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    roles = engine.roles
    weights = {f"{role}/{name}": value for role in roles.names for name, value in roles.weights(role).items()}
    save_file(weights, building / WEIGHTS)
    save_file(_optimizer_tensors(engine), building / OPTIMIZERS)
    state = {
        "iteration": engine.iteration_index,
        "updates": {name: role.updates for name, role in engine.trained.items()},
        "config": fingerprint(engine.config),
    }
    (building / STATE).write_text(json.dumps(state, indent=1) + "\n")
    for file in building.iterdir():
        _flush(file)
    if target.exists():
        shutil.rmtree(target)
    os.rename(building, target)
    _write_latest(folder, target.name)
    for old in checkpoint_folders(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _write_latest(folder: Path, name: str) -> None:
    pointer = folder / f".{LATEST}.tmp"
    pointer.write_text(name + "\n")
    _flush(pointer)
    os.replace(pointer, folder / LATEST)


def checkpoint_folders(folder: Path) -> list[Path]:
    """The checkpoints in a run's checkpoint folder, oldest first."""
    return sorted(entry for entry in folder.glob("step-*") if re.fullmatch(r"step-\d{6,}", entry.name))


def latest_checkpoint(folder: Path) -> Path:
    """The checkpoint that `latest` names. Raises Tdmr1Error if there is none."""
    pointer = folder / LATEST
    if not pointer.is_file():
        raise Tdmr1Error(f"there is no checkpoint in {folder}", "the run stopped before its first one; start it again")
    target = folder / pointer.read_text().strip()
    if target.parent != folder or not (target / STATE).is_file():
        raise Tdmr1Error(f"{pointer} names {target.name!r}, which is no checkpoint", "name one that is there")
    return target


def load_checkpoint(engine: Engine, checkpoint: Path) -> None:
    """Put an engine where it stood. Raises Tdmr1Error for a checkpoint that is damaged or does not fit."""
    try:
        state = json.loads((checkpoint / STATE).read_text())
        weights, optimizers = load_file(checkpoint / WEIGHTS), load_file(checkpoint / OPTIMIZERS)
    except (OSError, ValueError, SafetensorError) as error:
        raise Tdmr1Error(f"the checkpoint {checkpoint} can't be read: {error}", "use an earlier one") from error
    for role in engine.roles.names:
        own = {key.partition("/")[2]: value for key, value in weights.items() if key.startswith(f"{role}/")}
        engine.roles.load(role, own, str(checkpoint / WEIGHTS))
    _load_optimizers(engine, optimizers)
    for name, trained in engine.trained.items():
        trained.updates = state["updates"][name]
    engine.iteration_index = state["iteration"]


def read_role(checkpoint: Path, role: str) -> dict[str, Tensor]:
    """One role's weights out of a checkpoint, by canonical name."""
    weights = load_file(checkpoint / WEIGHTS)
    return {key.partition("/")[2]: value for key, value in weights.items() if key.startswith(f"{role}/")}


def _optimizer_tensors(engine: Engine) -> dict[str, Tensor]:
    """AdamW's moments by role, parameter name and kind."""
    tensors: dict[str, Tensor] = {}
    for role_name, role in engine.trained.items():
        for name, weight in role.parameters.items():
            for kind, value in role.optimizer.state.get(weight, {}).items():
                tensors[f"{role_name}/{name}/{kind}"] = torch.as_tensor(value).detach().cpu().clone()
    return tensors


def _load_optimizers(engine: Engine, tensors: dict[str, Tensor]) -> None:
    for role_name, role in engine.trained.items():
        role.optimizer.state.clear()
        for name, weight in role.parameters.items():
            state: dict[str, Any] = {}
            for kind in ("step", "exp_avg", "exp_avg_sq"):
                value = tensors.get(f"{role_name}/{name}/{kind}")
                if value is not None:
                    state[kind] = value if kind == "step" else value.to(weight)
            if state:
                role.optimizer.state[weight] = state
