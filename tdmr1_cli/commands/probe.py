"""`tdmr1 probe`: a short test whether the surrogate learns the reward."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tdmr1_cli.options import (
    JsonOption,
    LoraOption,
    ModelOption,
    ModelPathOption,
    PresetOption,
    PromptsOption,
    RewardOption,
    SeedOption,
    SetOption,
)
from tdmr1_cli.output import data, emit_json, measure_document, message, number, plus_minus, table
from tdmr1_cli.targets import CONFIG, check_target, is_run
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.preflight.layers import Flags, resolve_settings
from tdmr1_core.settings.bounds import MOST_IMAGES

if TYPE_CHECKING:
    from tdmr1_core.runs.probe import ProbeResult


def command(
    target: Annotated[
        str | None, typer.Argument(metavar="RUN|MODEL", help="A run folder (its settings are used) or a model.")
    ] = None,
    model: ModelOption = None,
    reward: RewardOption = None,
    preset: PresetOption = None,
    prompts: PromptsOption = None,
    seed: SeedOption = None,
    sets: SetOption = None,
    model_path: ModelPathOption = None,
    lora: LoraOption = None,
    pool: Annotated[
        int, typer.Option("--pool", metavar="N", min=1, max=MOST_IMAGES, help="Training samples, in iterations.")
    ] = 4,
    updates: Annotated[
        int, typer.Option("--updates", metavar="N", min=1, max=MOST_IMAGES, help="Surrogate updates on them.")
    ] = 40,
    images: Annotated[
        int, typer.Option("--images", metavar="N", min=2, max=MOST_IMAGES, help="Images sampled at each strength.")
    ] = 192,
    json: JsonOption = False,
) -> int:
    """Train only the surrogate on scored samples, then follow it and measure the true reward.

    Takes minutes; use it before a run of hours. The exit code is 0 if the reward rises by more than two standard
    errors, else 1. The surrogate always starts untrained, even if a run is named.
    """
    flags = Flags(None, model, reward or (), preset, prompts, None, seed, sets or (), model_path, lora)
    if target is not None:
        flags = _with_target(flags, target)
    result = _probe(flags, pool, updates, images)
    if json:
        emit_json(_document(result))
    else:
        rows = [[f"{point.strength:g}", plus_minus(point.reward), str(point.reward.n)] for point in result.points]
        table(["s", "true reward", "n"], rows, title="v_ref + s (v_surrogate − v_ref)")
        verdict = (
            "passed: the surrogate learned the reward"
            if result.passed
            else "not passed: the reward does not clearly rise"
        )
        data(f"{verdict} (gain {number(result.gain)} ± {number(result.stderr)})")
    return 0 if result.passed else 1


def _with_target(flags: Flags, target: str) -> Flags:
    if is_run(target):
        return replace(flags, config=Path(target) / CONFIG)
    if flags.model is not None:
        raise Tdmr1Error(
            f"the model is named twice: {target!r} and --model {flags.model!r}",
            "name it once",
            code="option-conflict",
            values={"target": target, "model": flags.model},
        )
    check_target(target)
    return replace(flags, model=target)


def _probe(flags: Flags, pool: int, updates: int, images: int) -> ProbeResult:
    from tdmr1_core.plugins import discover

    resolved = resolve_settings(flags, "train", discover(), evaluates=False)
    message("loading torch and diffusers …")
    from tdmr1_cli.progress import Stages
    from tdmr1_core.distributed import set_threads
    from tdmr1_core.engine import Engine
    from tdmr1_core.runs.probe import probe

    set_threads(resolved.config.threads)
    engine = Engine.from_resolved(resolved)
    try:
        with Stages() as stages:
            return probe(engine, pool=pool, updates=updates, images=images, progress=stages)
    finally:
        engine.close()


def _document(result: ProbeResult) -> dict[str, Any]:
    return {
        "passed": result.passed,
        "gain": result.gain,
        "stderr": result.stderr,
        "points": [{"strength": point.strength, **measure_document(point.reward)} for point in result.points],
    }
