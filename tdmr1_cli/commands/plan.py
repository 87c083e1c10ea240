"""`tdmr1 plan`: memory and time of a run, without loading weights."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from tdmr1_cli.options import (
    ConfigArgument,
    JsonOption,
    LoraOption,
    ModelOption,
    ModelPathOption,
    PresetOption,
    ProcessesOption,
    RewardOption,
    SetOption,
)
from tdmr1_cli.output import emit_json, message, print_warnings, table
from tdmr1_cli.run_summary import GB, TFLOPS, print_encoding, print_estimate
from tdmr1_cli.settings import Flags, resolve_settings
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.licences import license_warnings
from tdmr1_core.settings.bounds import LARGEST_NUMBER

if TYPE_CHECKING:
    from tdmr1_core.planning.estimate import Plan

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
        str | None, typer.Option("--gpu", metavar="24GB", help="Memory of one GPU: report whether the run fits.")
    ] = None,
    tflops: Annotated[
        float,
        typer.Option(
            "--tflops",
            metavar="T",
            min=0.001,
            max=LARGEST_NUMBER,
            help="Sustained TFLOP/s of one GPU.",
        ),
    ] = TFLOPS,
    json: JsonOption = False,
) -> int:
    """Estimate peak memory by part and time per iteration from the model's configs; no weights are needed.

    The exit code is 1 if the run does not fit into --gpu. The memory and time of rewards are not included.
    """
    from tdmr1_core.plugins import discover

    flags = Flags(config, model, reward or (), preset, None, None, None, sets or (), model_path, lora)
    resolved = resolve_settings(flags, None, discover(), needs_reward=False, previews=True)
    room = parse_memory(gpu) if gpu else None
    print_warnings(license_warnings(resolved.entry))
    message("estimating memory and time …")
    from tdmr1_core.planning.estimate import fitting_micro_batch, plan

    planned = plan(resolved.config, resolved.entry, processes or 1, room)
    fits = None if room is None else planned.peak <= room
    most = None if room is None else fitting_micro_batch(planned, resolved.config, room)
    if json:
        further = {"peak": planned.peak, "seconds": planned.seconds(tflops), "fits": fits, "fitting_micro_batch": most}
        emit_json(asdict(planned) | further)
        return 1 if fits is False else 0
    table(["part", "GB"], [[name, f"{size / GB:.2f}"] for name, size in planned.parts.items()])
    print_estimate(planned, tflops)
    print_encoding(planned, resolved)
    if most is not None:
        message(f"{gpu}: {'fits' if fits else 'does not fit'}; {_advice(planned, most)}")
    return 1 if fits is False else 0


def parse_memory(text: str) -> float:
    """Bytes of `24GB`, `24GiB` or `24`. Raises Tdmr1Error for anything else."""
    match = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*([a-z]*)\s*", text.lower())
    if match is None or match[2] not in UNITS:
        raise Tdmr1Error(
            f"--gpu {text!r} is not a size in GB or GiB",
            "write it as `--gpu 24GB`",
            code="argument-invalid",
            values={"gpu": text},
        )
    return float(match[1]) * UNITS[match[2]]


def _advice(planned: Plan, most: int) -> str:
    if most == 0:
        return "not even a micro-batch of one image fits; try `--preset single-gpu`, which uses less memory"
    halved = f"auto selects {planned.micro_batch}; " if planned.halves and planned.micro_batches > 1 else ""
    return f"{halved}the largest micro-batch that fits is batch.micro_batch={most}"
