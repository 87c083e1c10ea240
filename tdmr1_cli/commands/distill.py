"""`tdmr1 distill`: distills a multi-step teacher into a few-step LoRA."""

from __future__ import annotations

from tdmr1_cli.options import (
    ConfigArgument,
    DryRunOption,
    IterationsOption,
    ModelOption,
    ModelPathOption,
    OutputOption,
    PresetOption,
    ProcessesOption,
    PromptsOption,
    QuietOption,
    ResumeOption,
    SeedOption,
    SetOption,
)
from tdmr1_cli.run_command import resume_run, start_run
from tdmr1_core.preflight.layers import Flags


def command(
    config: ConfigArgument = None,
    model: ModelOption = None,
    preset: PresetOption = None,
    prompts: PromptsOption = None,
    iterations: IterationsOption = None,
    seed: SeedOption = None,
    output: OutputOption = None,
    sets: SetOption = None,
    model_path: ModelPathOption = None,
    resume: ResumeOption = None,
    processes: ProcessesOption = None,
    dry_run: DryRunOption = False,
    quiet: QuietOption = False,
) -> None:
    """Distill a multi-step model into a few-step LoRA (TDM), without rewards.

    At the end the LoRA is exported into the run folder; pass it to `tdmr1 train --lora`.
    """
    flags = Flags(config, model, (), preset, prompts, iterations, seed, sets or (), model_path)
    if resume is not None:
        resume_run(resume, flags, output, dry_run=dry_run, quiet=quiet, processes=processes)
    else:
        start_run("distill", flags, output, dry_run=dry_run, quiet=quiet, processes=processes)
