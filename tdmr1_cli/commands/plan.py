"""`tdmr1 plan`: memory and time of a run, without loading weights."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

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
from tdmr1_cli.run_summary import GB, TFLOPS, print_choices, print_encoding, print_estimate
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.licences import license_warnings
from tdmr1_core.preflight.layers import Flags, resolve_settings
from tdmr1_core.settings.bounds import LARGEST_NUMBER

if TYPE_CHECKING:
    from tdmr1_core.config import RunConfig
    from tdmr1_core.planning.choices import Choices
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
        str | None,
        typer.Option(
            "--gpu", metavar="24GB", help="Memory of one GPU, for which settings are chosen (default: the one here)."
        ),
    ] = None,
    tflops: Annotated[
        float,
        typer.Option(
            "--tflops",
            metavar="T",
            min=0.001,
            max=LARGEST_NUMBER,
            help="Sustained TFLOP/s of one GPU: about 18 % of its speed in bf16 matrix products.",
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
    room = parse_memory(gpu) if gpu else _found_room(resolved.config, processes or 1)
    print_warnings(license_warnings(resolved.entry))
    from tdmr1_core.planning.choices import choose
    from tdmr1_core.planning.estimate import Planner

    planner = Planner(resolved.entry, processes or 1, message)
    choices = None if room is None else choose(resolved.config, room, planner.plan)
    planned = planner.plan(resolved.config) if choices is None else choices.planned
    if json:
        emit_json(asdict(planned) | _further(planned, choices, tflops))
    else:
        table(["part", "GB"], [[name, f"{size / GB:.2f}"] for name, size in planned.parts.items()])
        if choices is not None:
            print_choices(choices)
        print_estimate(planned, tflops)
        print_encoding(planned, resolved)
        if choices is not None and room is not None:
            message(_verdict(choices, gpu or f"{room / GB:.3g} GB free"))
    return 0 if choices is None or choices.fits else 1


def _found_room(config: RunConfig, processes: int) -> float | None:
    """Free bytes of the cards that a run would use here; None without any."""
    from tdmr1_core.planning.cards import found_card

    return None if config.model.device == "cpu" else found_card(processes)


def _further(planned: Plan, choices: Choices | None, tflops: float) -> dict[str, Any]:
    """Values of the JSON document beside those of the plan."""
    further: dict[str, Any] = {"peak": planned.peak, "seconds": planned.seconds(tflops)}
    if choices is None:
        return further | {"fits": None, "fitting_micro_batch": None, "chosen": None, "reasons": None}
    memory = choices.config.memory
    chosen = {
        "batch.micro_batch": choices.config.batch.micro_batch,
        "memory.gradient_checkpointing": memory.gradient_checkpointing,
        "memory.trajectories": memory.trajectories,
        "memory.decoder": memory.decoder,
        "memory.text_encoders": memory.text_encoders,
    }
    fitting = {"fits": choices.fits, "fitting_micro_batch": choices.largest}
    return further | fitting | {"chosen": chosen, "reasons": list(choices.lines)}


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


def _verdict(choices: Choices, card: str) -> str:
    """Whether the run fits a card, and what to change if it does not."""
    if choices.fits:
        return f"{card}: fits"
    if choices.largest:
        return f"{card}: does not fit; the largest micro-batch that fits is batch.micro_batch={choices.largest}"
    advice = "try `--preset single-gpu`, which uses less memory"
    if choices.planned.processes > 1 and not choices.config.memory.shard:
        advice = "try `--set memory.shard=true`, which divides the frozen weights among the processes"
    return f"{card}: does not fit; not even a micro-batch of one image fits; {advice}"
