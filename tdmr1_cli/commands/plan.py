"""`tdmr1 plan`: memory and time of a run, without loading weights."""

from __future__ import annotations

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
from tdmr1_cli.run_summary import GB, print_choices, print_encoding, print_estimate, speed_of, verdict_of
from tdmr1_core.models.licences import license_warnings
from tdmr1_core.planning.cards import Room, card_of, parse_room
from tdmr1_core.preflight.layers import Flags, resolve_settings
from tdmr1_core.settings.bounds import LARGEST_NUMBER

if TYPE_CHECKING:
    from tdmr1_cli.run_summary import Speed
    from tdmr1_core.config import RunConfig
    from tdmr1_core.planning.choices import Choices
    from tdmr1_core.planning.estimate import Plan


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
            "--gpu",
            metavar="CARD|24GB",
            help='The GPU for which settings are chosen: a name (H100, "RTX 4090") or a size (default: the one here).',
        ),
    ] = None,
    tflops: Annotated[
        float | None,
        typer.Option(
            "--tflops",
            metavar="T",
            min=0.001,
            max=LARGEST_NUMBER,
            help="Sustained TFLOP/s of one GPU (default: 14 % of its dense bf16 speed; unknown: of an H100).",
        ),
    ] = None,
    json: JsonOption = False,
) -> int:
    """Estimate peak memory by part and time per iteration from the model's configs; no weights are needed.

    The exit code is 1 if the run does not fit into --gpu. The memory and time of rewards are not included.
    """
    from tdmr1_core.plugins import discover

    flags = Flags(config, model, reward or (), preset, None, None, None, sets or (), model_path, lora)
    resolved = resolve_settings(flags, None, discover(), needs_reward=False, previews=True)
    room = parse_room(gpu) if gpu is not None else _found_room(resolved.config, processes or 1)
    speed = speed_of(None if room is None else room.card, tflops)
    print_warnings(license_warnings(resolved.entry))
    from tdmr1_core.planning.choices import choose
    from tdmr1_core.planning.estimate import Planner

    planner = Planner(resolved.entry, processes or 1, message)
    choices = None if room is None else choose(resolved.config, room.memory, planner.plan)
    planned = planner.plan(resolved.config) if choices is None else choices.planned
    if json:
        emit_json(asdict(planned) | _further(planned, choices, speed, resolved.config.iterations))
    else:
        table(["part", "GB"], [[name, f"{size / GB:.2f}"] for name, size in planned.parts.items()])
        if choices is not None:
            print_choices(choices)
        print_estimate(planned, resolved.config.iterations, speed)
        print_encoding(planned, resolved)
        if choices is not None and room is not None:
            message(verdict_of(choices, room.label))
    return 0 if choices is None or choices.fits else 1


def _found_room(config: RunConfig, processes: int) -> Room | None:
    """The free memory of the cards that a run would use here; None without any."""
    from tdmr1_core.planning.free_memory import found_card

    found = None if config.model.device == "cpu" else found_card(processes)
    return None if found is None else Room(found.free, f"{found.free / GB:.3g} GB free", card_of(found.name))


def _further(planned: Plan, choices: Choices | None, speed: Speed, iterations: int) -> dict[str, Any]:
    """Values of the JSON document beside those of the plan."""
    seconds = planned.seconds(speed.tflops)
    further: dict[str, Any] = {
        "peak": planned.peak,
        "seconds": seconds,
        "iterations": iterations,
        "total_seconds": seconds * iterations,
        "speed": asdict(speed),
    }
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
