"""The RUN|MODEL argument of a command: a run folder with trained weights, or a model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tdmr1_cli.output import message, print_warnings
from tdmr1_cli.typed_secrets import with_typed_secrets
from tdmr1_core.errors import Tdmr1Error, close_match
from tdmr1_core.models.licences import license_warnings
from tdmr1_core.models.pipeline_files import INDEX
from tdmr1_core.models.registry import SAME
from tdmr1_core.preflight.layers import Flags, resolve_settings, run_changes

if TYPE_CHECKING:
    from collections.abc import Callable

    from tdmr1_core.config import RunConfig
    from tdmr1_core.engine import Engine
    from tdmr1_core.plugins import Extensions
    from tdmr1_core.preflight.resolved import ResolvedEngine
    from tdmr1_core.runs.missing_inputs import Needed

TargetArgument = Annotated[
    str, typer.Argument(metavar="RUN|MODEL", help="A run folder, the name of a model, or a pipeline directory.")
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]


RUNS = Path("runs")
"""Where runs are without --output."""
CONFIG = "config.yaml"


@dataclass(frozen=True)
class Target:
    """A loaded engine and what it was built from. `is_run` says whether it has the trained weights of a run."""

    engine: Engine
    resolved: ResolvedEngine
    is_run: bool


def is_run(target: str) -> bool:
    """Whether a folder is a run folder."""
    return (Path(target) / CONFIG).is_file()


def check_run(folder: Path) -> None:
    """Raise Tdmr1Error for a folder that is not a run folder. Nothing is loaded."""
    if not is_run(str(folder)):
        found = f"it has no {CONFIG}" if folder.is_dir() else "there is no such folder"
        raise Tdmr1Error(
            f"{folder} is not a run folder: {found}",
            _similar_path(folder) or "give the --output of an earlier run",
            code="run-folder-missing",
            values={"folder": str(folder)},
        )


@dataclass(frozen=True)
class FoundTarget:
    """What a target refers to, before anything is loaded. `needed` is what a command needs of a run."""

    target: str
    resolved: ResolvedEngine
    needed: Needed | None = None

    def load(self) -> Target:
        """Load the trained weights of the run, or the model. Raises Tdmr1Error for what cannot be loaded."""
        entry = self.resolved.entry
        if self.needed is not None and not self.needed.teacher:
            entry = replace(entry, teacher=SAME)  # its weights are not downloaded
        print_warnings(license_warnings(entry))
        message(f"loading {self.target} …")
        from tdmr1_core.distributed import set_threads

        set_threads(self.resolved.config.threads)
        if self.needed is None:
            from tdmr1_core.engine import Engine

            return Target(Engine.from_resolved(self.resolved), self.resolved, False)
        from tdmr1_core.runs.load_run import load_resolved

        start, teacher = self.needed.start, self.needed.teacher
        return Target(
            load_resolved(Path(self.target), self.resolved, start=start, teacher=teacher), self.resolved, True
        )


def load_target(
    target: str, flags: Flags, *, needs_reward: bool, needed: Callable[[RunConfig, Extensions], Needed] | None = None
) -> Target:
    """Load a run, or a model with the settings of `flags`. Raises Tdmr1Error as `find_target` and its `load` do."""
    return find_target(target, flags, needs_reward=needs_reward, needed=needed).load()


def find_target(
    target: str, flags: Flags, *, needs_reward: bool, needed: Callable[[RunConfig, Extensions], Needed] | None = None
) -> FoundTarget:
    """Look up a run, or a model with the settings of `flags`.

    Without `needs_reward`, a model that has no default reward gets a stand-in that is never called. `needed` returns
    what the command needs of a run beside its base model (None: nothing). Raises Tdmr1Error for a setting that a run
    keeps, for inputs of the run that cannot be found, and as `resolve_settings` does.
    """
    from tdmr1_core.plugins import discover

    extensions = discover()
    if is_run(target):
        return _find_run(target, flags, extensions, needed)
    flags = _with_model(target, flags, extensions)
    resolved = resolve_settings(flags, "train", extensions, needs_reward=needs_reward, evaluates=False)
    return FoundTarget(target, resolved)


def _find_run(
    target: str, flags: Flags, extensions: Extensions, needed: Callable[[RunConfig, Extensions], Needed] | None
) -> FoundTarget:
    from tdmr1_core.runs.checkpoints.run_config import load_changed_config
    from tdmr1_core.runs.load_run import resolve_trained
    from tdmr1_core.runs.missing_inputs import Needed, check_inputs

    folder = Path(target)
    flags = Flags(sets=flags.sets, model_path=flags.model_path, lora=flags.lora)
    config = load_changed_config(folder, run_changes(flags))
    wanted = needed(config, extensions) if needed else Needed()
    changes = run_changes(with_typed_secrets(flags, wanted.rewards))
    config = load_changed_config(folder, changes)
    wanted = needed(config, extensions) if needed else Needed()
    check_inputs(folder, config, extensions, wanted)
    return FoundTarget(target, resolve_trained(folder, extensions, changes), wanted)


def check_target(target: str) -> None:
    """Raise Tdmr1Error for a path to nothing, and for a folder that is neither a run nor a pipeline. Asks no hub.

    A text of the form owner/name is a hub id, unless its first part is a folder here or the folder of runs.
    """
    path = Path(target)
    if is_run(target) or (path.exists() and not _is_other_folder(path)):
        return
    local = len(path.parts) > 1 and (path.parts[0] == str(RUNS) or Path(path.parts[0]).exists())
    if not path.exists() and not local:
        return
    raise Tdmr1Error(
        f"{target} is no run folder or pipeline directory: neither {path / CONFIG} nor {path / INDEX} exists",
        _similar_path(path) or "give the --output of an earlier run, or a model of `tdmr1 models list`",
        code="target-unknown",
        values={"target": target},
    )


def _is_other_folder(path: Path) -> bool:
    """Whether a folder, and each folder in it, is not that of a pipeline."""
    return path.is_dir() and not any((folder / INDEX).exists() for folder in (path, *_folders(path)))


def _folders(path: Path) -> list[Path]:
    try:
        return [each for each in path.iterdir() if each.is_dir()]
    except OSError:
        return []


def _similar_path(path: Path) -> str | None:
    """The question for a folder with a similar name in the same place; None if there is none."""
    names = {each.name for each in _folders(path.parent)} if not path.exists() else set()
    match = close_match(path.name, names)
    return None if match is None else f"did you mean {path.parent / match}?"


def _with_model(target: str, flags: Flags, extensions: Extensions) -> Flags:
    check_target(target)
    try:
        extensions.models.get(target)
    except Tdmr1Error as error:
        if Path(target).is_dir():
            raise
        of_hub = error.code.startswith("hub-")
        raise Tdmr1Error(
            f"{target!r} is neither a run folder, nor a model, nor a pipeline directory"
            + (f", and the hub was asked: {error.message}" if of_hub else ""),
            f"check the path; if it is a model on the hub, {error.hint}" if of_hub else error.hint,
            code="target-unknown",
            values={"target": target},
        ) from error
    return replace(flags, model=target)
