"""What is printed about a run: the estimate before it, and the result after it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tdmr1_cli.output import data, message, plus_minus, signed, table
from tdmr1_cli.signals import sigterm_as_interrupt
from tdmr1_core.planning.cards import REFERENCE, SUSTAINED, card_of

if TYPE_CHECKING:
    from tdmr1_core.planning.cards import Card
    from tdmr1_core.planning.choices import Choices
    from tdmr1_core.planning.estimate import Plan
    from tdmr1_core.plugins import Extensions
    from tdmr1_core.preflight.resolved import ResolvedRun
    from tdmr1_core.runs.evaluation.evaluate import Evaluation
    from tdmr1_core.runs.run import RunResult

GB = 1e9


def print_choices(choices: Choices) -> None:
    """What was chosen for the card, and why, in three lines."""
    message(*choices.lines)


@dataclass(frozen=True)
class Speed:
    """The speed of one GPU that a plan assumes."""

    tflops: float
    """Sustained TFLOP/s."""
    source: str
    """Where it comes from, and how to change it."""


def speed_of(card: Card | None = None, set_tflops: float | None = None) -> Speed:
    """The speed that is set, or that of a card: an H100 if it is unknown."""
    if set_tflops is not None:
        return Speed(set_tflops, "as set with --tflops")
    assumed = card or card_of(REFERENCE)
    assert assumed is not None
    unknown = "" if card else ", because no card is known"
    return Speed(
        assumed.sustained,
        f"{SUSTAINED:.0%} of the {assumed.tflops:g} dense bf16 TFLOP/s of the {assumed.name}{unknown}; "
        "change it with `tdmr1 plan --tflops`",
    )


def print_estimate(planned: Plan, iterations: int, speed: Speed) -> None:
    """The size of an iteration, its memory and its time, and the time of all iterations."""
    message(
        f"iteration: {planned.groups} groups × {planned.images // planned.groups} images = {planned.images} images; "
        f"{_count(planned.processes, 'process', 'processes')}, each with "
        f"{_count(planned.micro_batches, 'micro-batch', 'micro-batches')} of up to "
        f"{_count(planned.micro_batch, 'image', 'images')}; LoRA rank {planned.rank}"
    )
    auto = " (batch.micro_batch=auto halves the micro-batch if it does not fit)" if planned.halves else ""
    images = _count(planned.micro_batch, "image", "images")
    message(f"peak memory: {planned.peak / GB:.1f} GB per process with micro-batches of {images}{auto}")
    message(
        f"this is {planned.constant / GB:.1f} GB for any micro-batch, "
        f"and {planned.per_image / GB:.2g} GB more for each image of a micro-batch"
    )
    seconds = planned.seconds(speed.tflops)
    message(
        f"time: {planned.passes:g} network passes per image, {duration(seconds)} per iteration, "
        f"{duration(seconds * iterations)} for {iterations:,} iterations, without rewards",
        f"speed: {speed.tflops:.3g} TFLOP/s sustained ({speed.source})",
    )


def duration(seconds: float) -> str:
    """Seconds in a unit that gives a short number: `0.12 s`, `45 s`, `27 min`, `14 hours`, `19 days`."""
    for unit, size, most in (("s", 1.0, 120.0), ("min", 60.0, 120.0), ("hours", 3600.0, 72.0)):
        if seconds < size * most:
            return f"{_two_digits(seconds / size)} {unit}"
    return f"{_two_digits(seconds / 86400)} days"


def _two_digits(value: float) -> str:
    """At least two digits that count, and all digits before the point."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def verdict_of(choices: Choices, card: str) -> str:
    """Whether the run fits a card, and what to change if it does not."""
    if choices.fits:
        return f"{card}: fits"
    if choices.largest:
        return f"{card}: does not fit; the largest micro-batch that fits is batch.micro_batch={choices.largest}"
    advice = "try `--preset single-gpu`, which uses less memory"
    if choices.planned.processes > 1 and not choices.config.memory.shard:
        advice = "try `--set memory.shard=true`, which divides the frozen weights among the processes"
    return f"{card}: does not fit; not even a micro-batch of one image fits; {advice}"


def print_encoding(planned: Plan, resolved: ResolvedRun) -> None:
    """Where the text encoders are during the run, and why."""
    from tdmr1_core.planning.prompt_encoding import describe_encoding

    message(f"text encoders: {describe_encoding(planned, resolved)}")


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def print_training(result: RunResult) -> None:
    """The gains of a finished training, and what can be done with it."""
    before = {evaluation.prompt_set: evaluation for evaluation in result.before}
    print_gains(result.after, before, {} if before else _recorded_before(result.folder))
    _print_comparison(result)
    message(f"run folder: {result.folder}")
    commands = [f"tdmr1 {verb} {result.folder}" for verb in ("evaluate", "report", "export")]
    message(f"next: {commands[0]}", *(f"      {command}" for command in commands[1:]))


def print_distillation(result: RunResult, extensions: Extensions) -> None:
    """Export the LoRA of a finished distillation, unless that is done, and print its path."""
    from tdmr1_core.runs.load_run import load_trained
    from tdmr1_core.runs.output.export import EXPORT, export_lora, exported_of

    if result.after:
        print_gains(result.after, {evaluation.prompt_set: evaluation for evaluation in result.before}, {})
    file = exported_of(result.folder / EXPORT, result.iterations)
    if file is not None:
        message(f"the distillation is complete; its LoRA: {file}")
    else:
        with sigterm_as_interrupt():
            file = export_lora(load_trained(result.folder, extensions), result.folder / EXPORT).file
    _print_comparison(result)
    data(str(file))
    message(f"next: tdmr1 sample {result.folder} --prompt …")
    message(f"      tdmr1 train --model … --lora {file}")


def print_gains(
    after: tuple[Evaluation, ...], before: Mapping[str, Evaluation], recorded: Mapping[tuple[str, str], str]
) -> None:
    """Each reward on each prompt set, before and after, and the paired gain on the same noise.

    `recorded` are the values before, for a run whose first evaluation was in an earlier session.
    """
    from tdmr1_core.runs.evaluation.evaluate import paired_gain

    rows = []
    for evaluation in after:
        former = before.get(evaluation.prompt_set)
        for reward, value in evaluation.measures.items():
            first = plus_minus(former.measures[reward]) if former else recorded.get((evaluation.prompt_set, reward))
            difference = signed(paired_gain(evaluation, former, reward)) if former else "–"
            rows.append([evaluation.prompt_set, reward, first or "–", plus_minus(value), difference, str(value.n)])
    table(["prompts", "reward", "before", "after", "gain", "images"], rows, title="mean ± standard error")


def _print_comparison(result: RunResult) -> None:
    if result.before_after is not None:
        message(f"before and after: {result.before_after}")


def _recorded_before(folder: Path) -> dict[tuple[str, str], str]:
    """The first evaluation of a resumed run: (prompt set, reward) to mean ± standard error."""
    from tdmr1_core.runs.output.report import read_evaluations

    first = {(each.prompts, each.reward): each.points[0] for each in read_evaluations(folder)}
    return {key: plus_minus(value) for key, (step, value) in first.items() if step == 0}
