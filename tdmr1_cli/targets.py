"""The RUN|MODEL argument of a command: a run folder with trained weights, or a model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tdmr1_cli.output import message
from tdmr1_cli.settings import Flags, resolve_settings
from tdmr1_core.errors import Tdmr1Error

if TYPE_CHECKING:
    from tdmr1_core.engine import Engine
    from tdmr1_core.plugins import Extensions
    from tdmr1_core.preflight.resolved import ResolvedEngine

TargetArgument = Annotated[
    str, typer.Argument(metavar="RUN|MODEL", help="A run folder, the name of a model, or a pipeline directory.")
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]


@dataclass(frozen=True)
class Target:
    """A loaded engine and what it was built from. `is_run` says whether it has the trained weights of a run."""

    engine: Engine
    resolved: ResolvedEngine
    is_run: bool


def is_run(target: str) -> bool:
    """Whether a folder is a run folder."""
    return (Path(target) / "config.yaml").is_file()


def check_run(folder: Path) -> None:
    """Raise Tdmr1Error for a folder that is not a run folder. Nothing is loaded."""
    if not is_run(str(folder)):
        raise Tdmr1Error(
            f"{folder} is not a run folder: it has no config.yaml",
            "give the --output of an earlier run",
            code="run-folder-missing",
            values={"folder": str(folder)},
        )


def load_target(target: str, flags: Flags, *, needs_reward: bool) -> Target:
    """Load a run, or a model with the settings of `flags`.

    Without `needs_reward`, a model that has no default reward gets a stand-in that is never called. Raises Tdmr1Error
    for settings given with a run, which has its own, and for what cannot be loaded.
    """
    from tdmr1_core.plugins import discover

    extensions = discover()
    if is_run(target):
        if flags.preset or flags.sets or flags.model_path or flags.lora:
            raise Tdmr1Error(
                "a run folder has its own settings",
                "remove --preset, --set, --model-path and --lora",
                code="option-conflict",
                values={"target": target},
            )
        message(f"loading {target} …")
        from tdmr1_core.distributed import set_threads
        from tdmr1_core.runs.load_run import load_resolved, resolve_trained

        trained = resolve_trained(Path(target), extensions)
        set_threads(trained.config.threads)
        return Target(load_resolved(Path(target), trained), trained, True)
    flags = _with_model(target, flags, extensions)
    resolved = resolve_settings(flags, "train", extensions, needs_reward=needs_reward)
    message(f"loading {target} …")
    from tdmr1_core.distributed import set_threads
    from tdmr1_core.engine import Engine

    set_threads(resolved.config.threads)
    return Target(Engine.from_resolved(resolved), resolved, False)


def _with_model(target: str, flags: Flags, extensions: Extensions) -> Flags:
    try:
        extensions.models.get(target)
    except Tdmr1Error as error:
        if Path(target).is_dir():
            raise
        of_hub = error.code.startswith("hub-")
        raise Tdmr1Error(
            f"{target!r} is neither a run folder, nor a model, nor a pipeline directory",
            f"check the path; if it is a model on the hub, {error.hint}" if of_hub else error.hint,
            code="target-unknown",
            values={"target": target},
        ) from error
    return replace(flags, model=target)
