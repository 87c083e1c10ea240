"""What is printed about a run: the estimate before it, and the result after it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tdmr1_cli.output import data, message, plus_minus, signed, table
from tdmr1_cli.signals import sigterm_as_interrupt

if TYPE_CHECKING:
    from tdmr1_core.planning.choices import Choices
    from tdmr1_core.planning.estimate import Plan
    from tdmr1_core.plugins import Extensions
    from tdmr1_core.preflight.resolved import ResolvedRun
    from tdmr1_core.runs.evaluation.evaluate import Evaluation
    from tdmr1_core.runs.run import RunResult

GB = 1e9
MATMUL_TFLOPS = 774.0
"""TFLOP/s of a product of two large bf16 matrices on an H100 80GB HBM3 (torch 2.11; docs/performance.md)."""
SUSTAINED = 0.18
"""The fraction of it that a run sustains. Measured on that card for SD3.5-medium, 512 px: 142 TFLOP/s (micro-batch 12,
no recomputation) and 137 TFLOP/s (micro-batch 24, recomputation)."""
TFLOPS = float(round(SUSTAINED * MATMUL_TFLOPS))
"""Assumed sustained TFLOP/s of one GPU."""


def print_choices(choices: Choices) -> None:
    """What was chosen for the card, and why, in three lines."""
    message(*choices.lines)


def print_estimate(planned: Plan, tflops: float = TFLOPS) -> None:
    """The size of an iteration, its memory and its time."""
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
    message(
        f"time: {planned.passes:g} network passes per image, {planned.seconds(tflops):.3g} s per iteration at "
        f"{tflops:g} TFLOP/s, without rewards"
    )


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
    message(f"next: tdmr1 sample {result.folder} --prompt … --output …")
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
