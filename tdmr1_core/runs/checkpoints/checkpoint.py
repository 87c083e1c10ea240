"""Checkpoints: weights and optimizer states as safetensors, counters and settings as JSON, published by one rename.

A resume from a checkpoint is bit-identical. No random state is stored, because every random stream is a function of the
seed, its name and the iteration; so is the position in the prompt set.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from tdmr1_core.config_loading import dump, fingerprint
from tdmr1_core.durable_files import (
    MALFORMED,
    flush_folder,
    make_durable_folder,
    replace_durable,
    translate_write_errors,
    write_durable,
)
from tdmr1_core.errors import Tdmr1Error, warn
from tdmr1_core.runs.checkpoints import manifest
from tdmr1_core.versions import versions
from tdmr1_rewards.calling.state import State
from tdmr1_rewards.errors import one_line
from tdmr1_rewards.texts.documents import parse_json

if TYPE_CHECKING:
    from tdmr1_core.engine import Engine

T = TypeVar("T")

WEIGHTS, OPTIMIZERS, STATE, LATEST = "weights.safetensors", "optimizers.safetensors", "state.json", "latest"
SETTINGS = "config.json"
REWARDS = "rewards.json"
"""The states of the rewards, one entry per process; the file exists only if a reward has a state."""
GOOD = "good"
"""The file that names the last checkpoint without a guard alarm. That checkpoint is never deleted."""
KINDS = ("step", "exp_avg", "exp_avg_sq", "state1", "state2", "qmap1", "qmap2", "absmax1", "absmax2")
"""The state tensors of one parameter in torch's AdamW and in the AdamW of bitsandbytes."""
MOMENTS = (("exp_avg", "exp_avg_sq"), ("state1", "state2"))
"""The two that have the shape of the parameter: first torch's, then those of bitsandbytes."""
FILES = (WEIGHTS, OPTIMIZERS, STATE, SETTINGS)
NAME = "step-[0-9]{6,15}"
BUILDING = ".step-*"
"""Folders that a crash during writing leaves behind."""


def save_checkpoint(engine: Engine, folder: Path, keep: int) -> Path:
    """Write `folder/step-NNNNNN`, write its name to `folder/latest` and delete old checkpoints. Returns its path.

    The `keep` newest checkpoints up to this one are kept, and the one that `good` names. Raises Tdmr1Error for weights
    that are not finite and for a failed write; earlier checkpoints are then unchanged.
    """
    files = _contents(engine, folder.parent)
    target = folder / f"step-{engine.iteration_index:06d}"
    building = folder / f".{target.name}.tmp"
    with translate_write_errors(folder):
        _clear(folder)
        try:
            make_durable_folder(folder)
            building.mkdir()
            for name, content in files.items():
                write_durable(building / name, content)
            write_durable(building / manifest.MANIFEST, manifest.describe(files))
            flush_folder(building)
            _put_in_place(building, target)
            _write_pointer(folder / LATEST, target.name)
        finally:
            _clear(folder)
        for old in _obsolete(folder, target, keep):
            shutil.rmtree(old)
    return target


def _obsolete(folder: Path, newest: Path, keep: int) -> list[Path]:
    """The checkpoints to delete: those older than the `keep` newest, except the one that `good` names.

    With `keep` of 2 or more, one of the kept checkpoints before the newest must be intact, so more may be kept. Nothing
    is deleted while `good` cannot be read, because it may name any of them.
    """
    good = read_pointer(folder / GOOD)
    if good is None and (folder / GOOD).exists():
        warn(
            f"{folder / GOOD} names no checkpoint, so no checkpoint is deleted",
            code="checkpoint-damaged",
            path=str(folder / GOOD),
        )
        return []
    older = [old for old in checkpoint_folders(folder) if iteration_of(old) < iteration_of(newest)]
    if len(older) < keep:
        return []
    kept, intact_found = 0, keep == 1
    while older and (kept < keep - 1 or not intact_found):
        candidate, kept = older.pop(), kept + 1
        intact_found = intact_found or _is_intact(candidate)
    return [old for old in older if old.name != good and old.is_dir() and not old.is_symlink()]


def _is_intact(checkpoint: Path) -> bool:
    try:
        _check_checkpoint(checkpoint)
    except Tdmr1Error:
        return False
    return True


def _check_checkpoint(checkpoint: Path) -> None:
    """Raise Tdmr1Error for a damaged or missing file."""
    manifest.check_intact(checkpoint, FILES, optional=(REWARDS,))


def mark_good(folder: Path, checkpoint: Path) -> None:
    """Write the checkpoint's name to `good`: it is not deleted until another one is marked."""
    with translate_write_errors(folder):
        _write_pointer(folder / GOOD, checkpoint.name)


def go_back_to_good(folder: Path) -> Path | None:
    """Copy the name in `good` to `latest`. Returns that checkpoint, or None if none is marked."""
    name = read_pointer(folder / GOOD)
    if name is None:
        return None
    with translate_write_errors(folder):
        _write_pointer(folder / LATEST, name)
    return folder / name


def _contents(engine: Engine, run_folder: Path) -> dict[str, bytes]:
    """The files of a checkpoint by name."""
    roles = engine.roles
    weights = {f"{role}/{name}": value for role in roles.names for name, value in roles.weights(role).items()}
    optimizers = _optimizer_tensors(engine)
    for name, value in (*weights.items(), *optimizers.items()):
        if not value.isfinite().all():
            raise Tdmr1Error(
                f"{name} has values that are not finite after iteration {engine.iteration_index}; it is not saved",
                "start a new run with lower learning rates; earlier checkpoints are unchanged",
                code="update-not-finite",
                values={"tensor": name, "iteration": engine.iteration_index},
            )
    state = {
        "iteration": engine.iteration_index,
        "updates": {name: role.updates for name, role in engine.trained.items()},
        "moments": {name: len(role.optimizer.state) for name, role in engine.trained.items()},
        "counters": engine.counters(),
        "config": fingerprint(engine.config),
        "versions": versions(),
    }
    files = {WEIGHTS: save(weights), OPTIMIZERS: save(optimizers)}
    files |= {STATE: _as_json(state), SETTINGS: _as_json(dump(engine.config, run_folder))}
    return files | ({REWARDS: _as_json(engine.reward_states)} if any(engine.reward_states) else {})


def _as_json(document: Any) -> bytes:
    return (json.dumps(document, indent=1) + "\n").encode()


def _clear(folder: Path) -> None:
    for leftover in folder.glob(BUILDING):
        shutil.rmtree(leftover, ignore_errors=True)


def _put_in_place(building: Path, target: Path) -> None:
    """Rename a complete checkpoint to its final name. One with the same name, from before a rollback, is replaced."""
    if target.exists():
        os.rename(target, target.with_name(f".{target.name}.old"))
    os.rename(building, target)
    flush_folder(target.parent)


def _write_pointer(pointer: Path, name: str) -> None:
    """Write a checkpoint's name to `latest` or `good` atomically."""
    replace_durable(pointer, f"{name}\n".encode())


def read_pointer(pointer: Path) -> str | None:
    """The checkpoint name in `latest` or `good`; None if the file is missing, unreadable or holds no such name."""
    try:
        name = pointer.read_text(errors="replace").strip() if pointer.is_file() else ""
    except OSError:
        return None
    return name if re.fullmatch(NAME, name) else None


def iteration_of(checkpoint: Path) -> int:
    """The number of completed iterations of a checkpoint, from its folder name."""
    return int(checkpoint.name.removeprefix("step-"))


def checkpoint_folders(folder: Path) -> list[Path]:
    """All checkpoints in a run's checkpoint folder, oldest first."""
    return sorted((entry for entry in folder.glob("step-*") if re.fullmatch(NAME, entry.name)), key=iteration_of)


def latest_checkpoint(folder: Path) -> Path:
    """The newest intact checkpoint up to the one that `latest` names. Warns about newer ones that are damaged.

    If `latest` names none, the checkpoint that `good` names is used, if it is intact. Raises Tdmr1Error if no
    checkpoint is intact.
    """
    return _read_latest(folder, _check_checkpoint)[0]


def read_latest_checkpoint(folder: Path) -> tuple[Path, dict[str, bytes]]:
    """The `latest_checkpoint` and its files by name."""
    return _read_latest(folder, read_checkpoint)


def _read_latest(folder: Path, read: Callable[[Path], T]) -> tuple[Path, T]:
    """The latest checkpoint that `read` accepts, and what it returns.

    A run in progress may delete checkpoints meanwhile: after an error, `latest` is read again if it has changed.
    """
    while True:
        named = read_pointer(folder / LATEST)
        try:
            return _read_named(folder, named, read)
        except Tdmr1Error:
            if read_pointer(folder / LATEST) == named:
                raise


def _read_named(folder: Path, in_latest: str | None, read: Callable[[Path], T]) -> tuple[Path, T]:
    """As `_read_latest`, but raises a Tdmr1Error if `latest` does not name `in_latest` any more."""
    pointer = folder / LATEST
    named = in_latest or _fallback(folder)
    candidates = checkpoint_folders(folder)
    if named is not None:
        candidates = [candidate for candidate in candidates if iteration_of(candidate) <= iteration_of(Path(named))]
        if folder / named not in candidates:
            _check_unchanged(pointer, in_latest)
            warn(
                f"{pointer} names the checkpoint {named}, which does not exist",
                code="checkpoint-damaged",
                path=str(pointer),
                checkpoint=named,
            )
    damage: Tdmr1Error | None = None
    for candidate in reversed(candidates):
        try:
            content = read(candidate)
        except Tdmr1Error as error:
            _check_unchanged(pointer, in_latest)
            damage = damage or error
            warn(error.message, code=error.code, **error.values)
            continue
        if damage is not None:
            warn(f"using the earlier checkpoint {candidate.name}", code="checkpoint-damaged", used=candidate.name)
        return candidate, content
    if damage is not None:
        raise Tdmr1Error(
            f"there is no intact checkpoint in {folder}: {damage.message}",
            "start a new run in another folder (--output)",
            code="checkpoint-missing",
            values={"path": str(folder), "damage": damage.values},
        )
    raise Tdmr1Error(
        f"there is no checkpoint in {folder}: the run ended before it saved the first one",
        "remove the run folder and start again, or choose another --output",
        code="checkpoint-missing",
        values={"path": str(folder)},
    )


def _check_unchanged(pointer: Path, named: str | None) -> None:
    """Raise Tdmr1Error if a pointer names another checkpoint than before."""
    if read_pointer(pointer) != named:
        raise Tdmr1Error(
            f"{pointer} changed while it was read", code="checkpoint-damaged", values={"path": str(pointer)}
        )


def _fallback(folder: Path) -> str | None:
    """The name in `good`, used if `latest` names no checkpoint; None if that checkpoint is not intact.

    Warns about `latest`, unless both files are missing.
    """
    pointer, good = folder / LATEST, read_pointer(folder / GOOD)
    used = good if good is not None and _is_intact(folder / good) else None
    if good is not None or pointer.exists():
        substitute = f"{used}, the last checkpoint without a guard alarm" if used else "the newest intact checkpoint"
        warn(
            f"{pointer} names no checkpoint; using {substitute}",
            code="checkpoint-damaged",
            path=str(pointer),
            used=used,
        )
    return used


def weight_names(checkpoint: Path, files: Mapping[str, bytes], role: str) -> frozenset[str]:
    """The names of the weights of a role in the files of a checkpoint. Raises Tdmr1Error if they hold no weights."""
    with _translate_foreign_content(checkpoint):
        names = load(files[WEIGHTS])
    return frozenset(name.partition("/")[2] for name in names if name.startswith(f"{role}/"))


def read_checkpoint(checkpoint: Path) -> dict[str, bytes]:
    """The files of a checkpoint by name. Raises Tdmr1Error for a damaged or missing file."""
    return manifest.read_intact(checkpoint, FILES, optional=(REWARDS,))


def read_config(checkpoint: Path) -> dict[str, Any]:
    """The settings that a checkpoint was trained with; reads no other file. Raises Tdmr1Error as `read_checkpoint`."""
    content = manifest.read_intact(checkpoint, (SETTINGS,))[SETTINGS]
    with _translate_foreign_content(checkpoint):
        return dict(_read_json(content, checkpoint, SETTINGS))


def load_checkpoint(
    engine: Engine,
    checkpoint: Path,
    *,
    with_rewards: bool = False,
    moments: bool = True,
    roles: Collection[str] | None = None,
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Load a checkpoint into an engine: weights and counters. `files` are its files, if they have been read already.

    `moments` selects whether the optimizer moments are loaded too, `with_rewards` whether the reward states are. Only
    the weights of `roles` are loaded; None loads all.
    Raises Tdmr1Error for a checkpoint that is damaged or does not fit the model.
    """
    files = read_checkpoint(checkpoint) if files is None else files
    with _translate_foreign_content(checkpoint):
        state = _read_json(files[STATE], checkpoint, STATE)
        weights, optimizers = load(files[WEIGHTS]), load(files[OPTIMIZERS])
        updates = {name: int(state["updates"][name]) for name in engine.trained}
        iteration, saved_versions = int(state["iteration"]), dict(state["versions"])
        at_least = {name: min(count, 1) for name, count in updates.items()}  # older checkpoints have no "moments"
        expected = {name: int(state.get("moments", at_least)[name]) for name in engine.trained}
        reward_states = [dict(states) for states in _read_json(files.get(REWARDS, b"[]"), checkpoint, REWARDS)]
    for role in engine.roles.names if roles is None else roles:
        of_role = {key.partition("/")[2]: value for key, value in weights.items() if key.startswith(f"{role}/")}
        engine.roles.load(role, of_role, str(checkpoint / WEIGHTS))
    if moments:
        _load_optimizers(engine, optimizers, expected, checkpoint / OPTIMIZERS)
    if "counters" in state:  # missing in older checkpoints
        with _translate_foreign_content(checkpoint):
            engine.restore_counters(state["counters"])
    for name, trained in engine.trained.items():
        trained.updates = updates[name]
    engine.iteration_index = iteration
    if with_rewards and reward_states:
        _load_rewards(engine, reward_states, checkpoint)
    if engine.processes.first:
        _warn_other_versions(saved_versions)


def _load_rewards(engine: Engine, states: list[dict[str, State]], checkpoint: Path) -> None:
    if len(states) != engine.processes.count and engine.processes.first:
        warn(
            f"{checkpoint} holds reward states of {len(states)} processes, and this run has {engine.processes.count}: "
            "every process starts from the state of the first one",
            code="reward-state",
            path=str(checkpoint),
            saved=len(states),
            processes=engine.processes.count,
        )
    try:
        engine.load_reward_states(states)
    except Tdmr1Error as error:
        raise Tdmr1Error(
            f"the reward states in {checkpoint} cannot be restored: {error.message}",
            error.hint,
            code="reward-state",
            values={**error.values, "path": str(checkpoint)},
        ) from error


def _read_json(content: bytes, checkpoint: Path, name: str) -> Any:
    """The JSON document in a file of a checkpoint. Raises Tdmr1Error for other content."""
    try:
        return parse_json(content)
    except ValueError as error:
        raise Tdmr1Error(
            f"{checkpoint} is not a checkpoint of tdmr1: {name} is not valid JSON",
            "use a checkpoint that tdmr1 wrote",
            code="checkpoint-mismatch",
            values={"path": str(checkpoint), "file": name},
        ) from error


@contextmanager
def _translate_foreign_content(checkpoint: Path) -> Iterator[None]:
    """Raise Tdmr1Error for files that match their manifest but do not hold a checkpoint."""
    try:
        yield
    except (SafetensorError, *MALFORMED) as error:
        raise Tdmr1Error(
            f"{checkpoint} is not a checkpoint of tdmr1, or was written by another version: {one_line(str(error))}",
            "use a checkpoint that tdmr1 wrote",
            code="checkpoint-mismatch",
            values={"path": str(checkpoint)},
        ) from error


def _warn_other_versions(saved: dict[str, str]) -> None:
    """Warn about packages whose version changed since the checkpoint: other versions may round differently."""
    now = versions()
    changed = {name: [saved[name], now[name]] for name in now if saved.get(name, now[name]) != now[name]}
    if changed:
        listed = ", ".join(f"{name} {before} (now {after})" for name, (before, after) in changed.items())
        warn(
            f"the checkpoint was written with {listed}: the run may not continue bit for bit",
            code="resume-inputs",
            versions=changed,
        )


def _optimizer_tensors(engine: Engine) -> dict[str, Tensor]:
    """AdamW's moments by role, parameter name and kind."""
    tensors: dict[str, Tensor] = {}
    for role_name, role in engine.trained.items():
        for name, weight in role.parameters.items():
            for kind, value in role.optimizer.state.get(weight, {}).items():
                tensors[f"{role_name}/{name}/{kind}"] = torch.as_tensor(value).detach().cpu().clone()
    return tensors


def _load_optimizers(engine: Engine, tensors: dict[str, Tensor], expected: dict[str, int], file: Path) -> None:
    """Load AdamW's moments. Raises Tdmr1Error for fewer than `expected` (by role) or for other shapes."""
    for role_name, role in engine.trained.items():
        role.optimizer.state.clear()
        for name, weight in role.parameters.items():
            saved = {kind: tensors.get(f"{role_name}/{name}/{kind}") for kind in KINDS}
            state: dict[str, Any] = {kind: value for kind, value in saved.items() if value is not None}
            if not state:  # a parameter that never had a gradient has no moments
                continue
            _check_moments(state, weight, file, f"{role_name}/{name}")
            for kind, value in state.items():
                state[kind] = value.to(weight) if kind.startswith("exp_avg") else value.to(weight.device)
            state["step"] = state["step"].cpu() if "exp_avg" in state else int(state["step"])
            role.optimizer.state[weight] = state
        found, wanted = len(role.optimizer.state), expected[role_name]
        if found < wanted:
            raise Tdmr1Error(
                f"{file} does not fit: it has moments of {found} parameters of the {role_name}, expected {wanted}",
                "use a checkpoint that tdmr1 wrote",
                code="checkpoint-mismatch",
                values={"path": str(file), "role": role_name, "found": found, "expected": wanted},
            )


def _check_moments(state: dict[str, Tensor], weight: Tensor, file: Path, name: str) -> None:
    moments = [kind for pair in MOMENTS if state.keys() >= {"step", *pair} for kind in pair]
    if not moments:
        raise Tdmr1Error(
            f"{file} does not fit: the moments of {name} are incomplete",
            "use a checkpoint that tdmr1 wrote",
            code="checkpoint-mismatch",
            values={"path": str(file), "parameter": name, "found": sorted(state)},
        )
    for kind in moments:
        shape, expected = tuple(state[kind].shape), tuple(weight.shape)
        if shape != expected or state["step"].numel() != 1:
            raise Tdmr1Error(
                f"{file} does not fit: the moments of {name} have shape {shape}, the parameter has shape {expected}",
                "use a checkpoint of the same model and LoRA",
                code="checkpoint-mismatch",
                values={"path": str(file), "parameter": name, "shape": list(shape), "expected": list(expected)},
            )
