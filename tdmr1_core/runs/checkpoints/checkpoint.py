"""Checkpoints: weights and optimiser states as safetensors, counters and settings as JSON, put in place by one rename.

Nothing else is needed to go on exactly: random streams are functions of the seed, their name and the iteration, and so
is the position in the prompt set.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from tdmr1_core.engine import Engine

WEIGHTS, OPTIMIZERS, STATE, LATEST = "weights.safetensors", "optimizers.safetensors", "state.json", "latest"
SETTINGS = "config.json"
REWARDS = "rewards.json"
"""What rewards remember, for each process; only where one remembers anything."""
GOOD = "good"
"""Names the checkpoint that the guard had nothing against; it is never dropped."""
KINDS = ("step", "exp_avg", "exp_avg_sq", "state1", "state2", "qmap1", "qmap2", "absmax1", "absmax2")
"""What torch's AdamW keeps of a parameter, and what bitsandbytes' does."""
MOMENTS = (("exp_avg", "exp_avg_sq"), ("state1", "state2"))
"""Those of them that have a weight's shape, of either."""
FILES = (WEIGHTS, OPTIMIZERS, STATE, SETTINGS)
NAME = "step-[0-9]{6,15}"
BUILDING = ".step-*"
"""What a crash in the middle of writing leaves behind."""


def save_checkpoint(engine: Engine, folder: Path, keep: int) -> Path:
    """Write `folder/step-NNNNNN`, point `folder/latest` at it and drop all but the `keep` up to it. Returns its path.

    Raises Tdmr1Error for weights that are not finite, and if the disk doesn't take it: earlier ones are untouched.
    """
    files = _contents(engine)
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
            _point(folder / LATEST, target.name)
        finally:
            _clear(folder)
        for old in _dispensable(folder, target, keep):
            shutil.rmtree(old)
    return target


def _dispensable(folder: Path, newest: Path, keep: int) -> list[Path]:
    """What is older than the `keep` newest checkpoints, with an intact one beside the newest, but for the good one.

    None is while `good` can't be read, as it might be any of them.
    """
    good = named_in(folder / GOOD)
    if good is None and (folder / GOOD).exists():
        warn(f"{folder / GOOD} names no checkpoint, so none is dropped until it does")
        return []
    upto = [old for old in checkpoint_folders(folder) if iteration_of(old) < iteration_of(newest)]
    if len(upto) < keep:
        return []
    kept, is_one_intact = 0, keep == 1
    while upto and (kept < keep - 1 or not is_one_intact):
        candidate, kept = upto.pop(), kept + 1
        is_one_intact = is_one_intact or _is_intact(candidate)
    return [old for old in upto if old.name != good and old.is_dir() and not old.is_symlink()]


def _is_intact(checkpoint: Path) -> bool:
    try:
        manifest.check_intact(checkpoint, FILES, optional=(REWARDS,))
    except Tdmr1Error:
        return False
    return True


def mark_good(folder: Path, checkpoint: Path) -> None:
    """Keep a checkpoint until another one is marked."""
    with translate_write_errors(folder):
        _point(folder / GOOD, checkpoint.name)


def go_back_to_good(folder: Path) -> Path | None:
    """Point `latest` at the checkpoint that was marked last, if there is one. Returns it."""
    name = named_in(folder / GOOD)
    if name is None:
        return None
    with translate_write_errors(folder):
        _point(folder / LATEST, name)
    return folder / name


def _contents(engine: Engine) -> dict[str, bytes]:
    """The files of a checkpoint by name."""
    roles = engine.roles
    weights = {f"{role}/{name}": value for role in roles.names for name, value in roles.weights(role).items()}
    optimizers = _optimizer_tensors(engine)
    for name, value in (*weights.items(), *optimizers.items()):
        if not value.isfinite().all():
            raise Tdmr1Error(
                f"the weights of {name} are not finite at iteration {engine.iteration_index}, so they are not saved",
                "lower the learning rates, and go on from the last checkpoint",
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
    files |= {STATE: _as_json(state), SETTINGS: _as_json(dump(engine.config))}
    return files | ({REWARDS: _as_json(engine.reward_states)} if any(engine.reward_states) else {})


def _as_json(document: Any) -> bytes:
    return (json.dumps(document, indent=1) + "\n").encode()


def _clear(folder: Path) -> None:
    for left in folder.glob(BUILDING):
        shutil.rmtree(left, ignore_errors=True)


def _put_in_place(building: Path, target: Path) -> None:
    """Give a whole checkpoint its name; one that had it before, from another future of the run, makes way."""
    if target.exists():
        os.rename(target, target.with_name(f".{target.name}.old"))
    os.rename(building, target)
    flush_folder(target.parent)


def _point(pointer: Path, name: str) -> None:
    """Write a checkpoint's name into a file, which always holds a whole one."""
    replace_durable(pointer, f"{name}\n".encode())


def named_in(pointer: Path) -> str | None:
    """The name of a checkpoint that is in a file; None for one that is not there, can't be read or holds no name."""
    try:
        name = pointer.read_text(errors="replace").strip() if pointer.is_file() else ""
    except OSError:
        return None
    return name if re.fullmatch(NAME, name) else None


def iteration_of(checkpoint: Path) -> int:
    """The iteration that a checkpoint was written after, by its name."""
    return int(checkpoint.name.removeprefix("step-"))


def checkpoint_folders(folder: Path) -> list[Path]:
    """The checkpoints in a run's checkpoint folder, oldest first."""
    return sorted((entry for entry in folder.glob("step-*") if re.fullmatch(NAME, entry.name)), key=iteration_of)


def latest_checkpoint(folder: Path) -> Path:
    """The newest intact checkpoint up to the one that `latest` names; what is wrong with newer ones is told.

    Where `latest` names none, an intact one that the guard marked as good stands in for it. Raises Tdmr1Error if there
    is no intact one.
    """
    candidates = checkpoint_folders(folder)
    pointer = folder / LATEST
    named = named_in(pointer) or _good_instead(folder)
    if named is not None:
        candidates = [candidate for candidate in candidates if iteration_of(candidate) <= iteration_of(Path(named))]
        if folder / named not in candidates:
            warn(f"{pointer} names {named}, which is missing")
    damage: Tdmr1Error | None = None
    for candidate in reversed(candidates):
        try:
            manifest.check_intact(candidate, FILES, optional=(REWARDS,))
        except Tdmr1Error as error:
            damage = damage or error
            warn(error.message)
            continue
        if damage is not None:
            warn(f"using {candidate.name}, the checkpoint before it")
        return candidate
    if damage is not None:
        raise Tdmr1Error(f"there is no intact checkpoint in {folder}: {damage.message}", "start the run again")
    raise Tdmr1Error(
        f"there is no checkpoint in {folder}",
        "the run ended before its first one: remove the folder and start again, or choose another --output",
    )


def _good_instead(folder: Path) -> str | None:
    """The name of the checkpoint marked as good, where `latest` names none; which is told, unless there is neither."""
    pointer, good = folder / LATEST, named_in(folder / GOOD)
    usable = good is not None and _is_intact(folder / good)
    if good is not None or pointer.exists():
        instead = f"{good}, which {folder / GOOD} names" if usable else "the newest that is intact"
        warn(f"{pointer} names no checkpoint: using {instead}")
    return good if usable else None


def read_checkpoint(checkpoint: Path) -> dict[str, bytes]:
    """The files of a checkpoint by name. Raises Tdmr1Error that names the one that is damaged or missing."""
    return manifest.read_intact(checkpoint, FILES, optional=(REWARDS,))


def read_config(checkpoint: Path) -> dict[str, Any]:
    """The settings that a checkpoint was trained with; nothing else is read. Raises Tdmr1Error as `read_checkpoint`."""
    content = manifest.read_intact(checkpoint, (SETTINGS,))[SETTINGS]
    with _told_as_foreign(checkpoint):
        return dict(json.loads(content))


def load_checkpoint(engine: Engine, checkpoint: Path, *, with_rewards: bool = False, moments: bool = True) -> None:
    """Put an engine where it stood: rewards, which are set up for it, only on request, and perhaps no `moments`.

    Raises Tdmr1Error for a checkpoint that is damaged or does not fit.
    """
    files = read_checkpoint(checkpoint)
    with _told_as_foreign(checkpoint):
        state, weights, optimizers = json.loads(files[STATE]), load(files[WEIGHTS]), load(files[OPTIMIZERS])
        updates = {name: int(state["updates"][name]) for name in engine.trained}
        iteration, then = int(state["iteration"]), dict(state["versions"])
        at_least = {name: min(count, 1) for name, count in updates.items()}  # earlier versions did not count them
        expected = {name: int(state.get("moments", at_least)[name]) for name in engine.trained}
        reward_states = [dict(told) for told in json.loads(files.get(REWARDS, b"[]"))]
        if "counters" in state:  # not in those of earlier versions
            engine.restore_counters(state["counters"])
    for role in engine.roles.names:
        own = {key.partition("/")[2]: value for key, value in weights.items() if key.startswith(f"{role}/")}
        engine.roles.load(role, own, str(checkpoint / WEIGHTS))
    if moments:
        _load_optimizers(engine, optimizers, expected, checkpoint / OPTIMIZERS)
    for name, trained in engine.trained.items():
        trained.updates = updates[name]
    engine.iteration_index = iteration
    if with_rewards and reward_states:
        _load_rewards(engine, reward_states, checkpoint)
    if engine.processes.first:
        _tell_of_other_versions(then)


def _load_rewards(engine: Engine, states: list[dict[str, State]], checkpoint: Path) -> None:
    if len(states) != engine.processes.count and engine.processes.first:
        warn(f"{checkpoint} holds what rewards remembered in {len(states)} processes: all go on with that of the first")
    try:
        engine.load_reward_states(states)
    except Tdmr1Error as error:
        raise Tdmr1Error(f"the rewards of {checkpoint} can't go on: {error.message}", error.hint) from error


@contextmanager
def _told_as_foreign(checkpoint: Path) -> Iterator[None]:
    """Raise Tdmr1Error for files that are as their manifest says, and yet no checkpoint of ours."""
    try:
        yield
    except (SafetensorError, *MALFORMED) as error:
        raise Tdmr1Error(
            f"{checkpoint} holds something else than a checkpoint: {' '.join(str(error).split())}",
            "use one that tdmr1 has written",
        ) from error


def _tell_of_other_versions(then: dict[str, str]) -> None:
    """Say which packages have changed since: with others, the same run may round differently."""
    now = versions()
    other = [f"{name} {then[name]} and now {now[name]}" for name in now if then.get(name, now[name]) != now[name]]
    if other:
        warn(f"the checkpoint was written with {', '.join(other)}: the run may not go on to the same bits")


def _optimizer_tensors(engine: Engine) -> dict[str, Tensor]:
    """AdamW's moments by role, parameter name and kind."""
    tensors: dict[str, Tensor] = {}
    for role_name, role in engine.trained.items():
        for name, weight in role.parameters.items():
            for kind, value in role.optimizer.state.get(weight, {}).items():
                tensors[f"{role_name}/{name}/{kind}"] = torch.as_tensor(value).detach().cpu().clone()
    return tensors


def _load_optimizers(engine: Engine, tensors: dict[str, Tensor], expected: dict[str, int], file: Path) -> None:
    """Put AdamW's moments in their place. Raises Tdmr1Error where there are fewer than expected, or of other shapes."""
    for role_name, role in engine.trained.items():
        role.optimizer.state.clear()
        for name, weight in role.parameters.items():
            own = {kind: tensors.get(f"{role_name}/{name}/{kind}") for kind in KINDS}
            state: dict[str, Any] = {kind: value for kind, value in own.items() if value is not None}
            if not state:  # as of a weight that has never had a gradient
                continue
            _check_moments(state, weight, f"{file} does not fit: the moments of {role_name}/{name}")
            for kind, value in state.items():
                state[kind] = value.to(weight) if kind.startswith("exp_avg") else value.to(weight.device)
            state["step"] = state["step"].cpu() if "exp_avg" in state else int(state["step"])
            role.optimizer.state[weight] = state
        found, wanted = len(role.optimizer.state), expected[role_name]
        if found < wanted:
            raise Tdmr1Error(
                f"{file} does not fit: it has moments of {found} weights of the {role_name}, not of {wanted}",
                "use a checkpoint that tdmr1 has written",
            )


def _check_moments(state: dict[str, Tensor], weight: Tensor, what: str) -> None:
    moments = [kind for pair in MOMENTS if state.keys() >= {"step", *pair} for kind in pair]
    if not moments:
        raise Tdmr1Error(f"{what} are not whole", "use a checkpoint that tdmr1 has written")
    for kind in moments:
        if state[kind].shape != weight.shape or state["step"].numel() != 1:
            raise Tdmr1Error(
                f"{what} are {tuple(state[kind].shape)}, the weight is {tuple(weight.shape)}",
                "use a checkpoint of the same model and LoRA",
            )
