"""`tdmr1 plan`: what a run will need, before any weight is loaded."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from tdmr1_cli.options import (
    ConfigArgument,
    Flags,
    JsonOption,
    LoraOption,
    ModelOption,
    ModelPathOption,
    PresetOption,
    ProcessesOption,
    RewardOption,
    SetOption,
    resolve_settings,
)
from tdmr1_cli.output import emit_json, message, table
from tdmr1_core.errors import Tdmr1Error

if TYPE_CHECKING:
    from tdmr1_core.planning.estimate import Plan

GB = 1e9
TFLOPS = 60.0
"""Taken for what one GPU sustains where nobody says it."""
UNITS = {"": GB, "gb": GB, "gib": 2.0**30}


def command(
    config: ConfigArgument = None,
    model: ModelOption = None,
    reward: RewardOption = None,
    preset: PresetOption = None,
    sets: SetOption = None,
    model_path: ModelPathOption = None,
    lora: LoraOption = None,
    processes: ProcessesOption = None,
    gpu: Annotated[
        str | None, typer.Option("--gpu", metavar="24GB", help="Memory of one GPU: does it fit, and with what?")
    ] = None,
    tflops: Annotated[
        float, typer.Option("--tflops", metavar="T", min=0.001, help="What one GPU sustains, in TFLOP/s.")
    ] = TFLOPS,
    json: JsonOption = False,
) -> int:
    """Estimate memory by part and time per iteration from the architecture alone; no weights are needed.

    Exit code 1 if it does not fit into --gpu. Rewards are not counted, neither their memory nor their time; without
    --reward the settings are the published ones that all presets share.
    """
    from tdmr1_core.plugins import discover

    flags = Flags(config, model, reward or (), preset, None, None, None, sets or (), model_path, lora)
    settings = resolve_settings(flags, None, discover(), rewarded=False)
    room = parse_memory(gpu) if gpu else None
    message("estimating memory and time …")
    from tdmr1_core.planning.estimate import fitting_micro_batch, plan

    planned = plan(settings.config, settings.entry, processes or 1, room)
    fits = None if room is None else planned.peak <= room
    most = None if room is None else fitting_micro_batch(planned, settings.config, room)
    if json:
        further = {"peak": planned.peak, "seconds": planned.seconds(tflops), "fits": fits, "fitting_micro_batch": most}
        emit_json(asdict(planned) | further)
        return 1 if fits is False else 0
    table(["part", "GB"], [[name, f"{size / GB:.2f}"] for name, size in planned.parts.items()])
    say_estimate(planned, tflops)
    if most is not None:
        message(f"{gpu}: {'fits' if fits else 'does not fit'}; {_advice(planned, most)}")
    return 1 if fits is False else 0


def say_estimate(planned: Plan, tflops: float = TFLOPS) -> None:
    """What an iteration is and takes, in four sentences."""
    message(
        f"an iteration: {planned.groups} groups × {planned.images // planned.groups} images = {planned.images} images "
        f"over {planned.processes} processes, each in {planned.micro_batches} micro-batches of up to "
        f"{planned.micro_batch}, with LoRAs of rank {planned.rank}"
    )
    auto = ", which batch.micro_batch=auto halves where they do not fit" if planned.halves else ""
    message(f"peak: {planned.peak / GB:.1f} GB for each process with {planned.micro_batch} images at once{auto}")
    message(f"of it {planned.lasting / GB:.1f} GB always, and {planned.each / GB:.2g} GB more for each image at once")
    message(
        f"time: {planned.passes:g} passes for each image, {planned.seconds(tflops):.3g} s an iteration at {tflops:g} "
        "TFLOP/s, without rewards"
    )


def parse_memory(text: str) -> float:
    """Bytes of `24GB`, `24GiB` or `24`. Raises Tdmr1Error for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    if match is None or match[2] not in UNITS:
        raise Tdmr1Error(f"--gpu {text!r} is not understood", "write it as `--gpu 24GB`")
    return float(match[1]) * UNITS[match[2]]


def _advice(planned: Plan, most: int) -> str:
    if most == 0:
        return "not even one image at a time; `--preset single-gpu` recomputes blocks and lets encoders leave"
    halved = f"auto comes to {planned.micro_batch}, and " if planned.halves and planned.micro_batches > 1 else ""
    return f"{halved}up to batch.micro_batch={most} fits"
