"""`tdmr1 plan`: what a run will need, before any weight is loaded."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Annotated

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

GB = 1e9
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
    ] = 60.0,
    json: JsonOption = False,
) -> int:
    """Estimate memory by part and time per iteration from the architecture alone; no weights are needed.

    Exit code 1 if it does not fit into --gpu. Rewards are not counted, neither their memory nor their time.
    """
    from tdmr1_core.plugins import discover

    flags = Flags(config, model, reward or (), preset, None, None, None, sets or (), model_path, lora)
    settings = resolve_settings(flags, None, discover())
    room = parse_memory(gpu) if gpu else None
    from tdmr1_core.plan import fitting_micro_batch, plan

    planned = plan(settings.config, settings.entry, processes or 1)
    seconds = planned.operations * planned.images / planned.processes / (tflops * 1e12)
    fits = None if room is None else planned.peak <= room
    most = None if room is None else fitting_micro_batch(planned, settings.config, room)
    if json:
        emit_json(
            asdict(planned) | {"peak": planned.peak, "seconds": seconds, "fits": fits, "fitting_micro_batch": most}
        )
        return 1 if fits is False else 0
    table(["part", "GB"], [[name, f"{size / GB:.2f}"] for name, size in planned.parts.items()])
    message(
        f"an iteration: {planned.images} images over {planned.processes} processes, each in {planned.micro_batches} "
        f"micro-batches of up to {planned.micro_batch}"
    )
    message(f"peak: {planned.peak / GB:.1f} GB for each process")
    message(
        f"time: {planned.passes:g} passes for each image, {seconds:.3g} s an iteration at {tflops:g} TFLOP/s, "
        "without rewards"
    )
    if most is not None:
        message(f"{gpu}: {'fits' if fits else 'does not fit'}; {_advice(most)}")
    return 1 if fits is False else 0


def parse_memory(text: str) -> float:
    """Bytes of `24GB`, `24GiB` or `24`. Raises Tdmr1Error for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    if match is None or match[2] not in UNITS:
        raise Tdmr1Error(f"--gpu {text!r} is not understood", "write it as `--gpu 24GB`")
    return float(match[1]) * UNITS[match[2]]


def _advice(most: int) -> str:
    if most == 0:
        return "not even one image at a time fits: try memory.gradient_checkpointing and memory.text_encoders=cpu"
    return f"up to batch.micro_batch={most} fits"
