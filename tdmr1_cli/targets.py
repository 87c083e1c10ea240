"""A command's RUN|MODEL argument: an engine with a run's trained weights, or one of a bare model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tdmr1_cli.options import STAND_IN_REWARD, Flags, resolve_settings
from tdmr1_cli.output import message
from tdmr1_core.errors import Tdmr1Error

if TYPE_CHECKING:
    from tdmr1_core.engine import Engine
    from tdmr1_core.plugins import Extensions

TargetArgument = Annotated[
    str, typer.Argument(metavar="RUN|MODEL", help="A run folder, a model's name or a pipeline directory.")
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]


@dataclass(frozen=True)
class Target:
    """A loaded engine, and whether it holds weights that a run has trained."""

    engine: Engine
    extensions: Extensions
    is_run: bool


def is_run(target: str) -> bool:
    """Whether a folder is a run's."""
    return (Path(target) / "config.yaml").is_file()


def check_run(folder: Path) -> None:
    """Raise Tdmr1Error for a folder that is no run's, without loading anything."""
    if not is_run(str(folder)):
        raise Tdmr1Error(f"{folder} is not a run folder: it has no config.yaml", "give the --output of an earlier run")


def load_target(target: str, flags: Flags, *, judged: bool) -> Target:
    """Load a run or a model; `flags` hold the settings of a bare model, without its name.

    Unless it is `judged`, a model that has no reward of its own gets one that is never asked. Raises Tdmr1Error for
    settings given to a run, which has its own, and for what can't be loaded.
    """
    from tdmr1_core.plugins import discover

    extensions = discover()
    if is_run(target):
        if flags.preset or flags.sets or flags.model_path or flags.lora:
            raise Tdmr1Error("a run folder has its own settings", "leave --preset, --set, --model-path and --lora out")
        message(f"loading {target} …")
        from tdmr1_core.runs.run import load_run_config, load_trained, set_threads

        set_threads(load_run_config(Path(target)).threads)
        return Target(load_trained(Path(target), extensions), extensions, True)
    config = resolve_settings(_with_model(target, flags, extensions, judged), "train", extensions).config
    message(f"loading {target} …")
    from tdmr1_core.engine import Engine
    from tdmr1_core.runs.run import set_threads

    set_threads(config.threads)
    return Target(Engine.from_config(config, extensions=extensions), extensions, False)


def _with_model(target: str, flags: Flags, extensions: Extensions, judged: bool) -> Flags:
    try:
        entry = extensions.models.get(target)
    except Tdmr1Error as error:
        if Path(target).is_dir():
            raise
        raise Tdmr1Error(
            f"{target!r} is neither a run folder, nor a model, nor a pipeline directory", error.hint
        ) from error
    if not judged and entry.default_reward is None:
        flags = replace(flags, rewards=[STAND_IN_REWARD])
    return replace(flags, model=target)
