"""`tdmr1 distill`: make a few-step LoRA out of a multi-step teacher."""

from __future__ import annotations

from tdmr1_cli.options import (
    ConfigArgument,
    DryRunOption,
    Flags,
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
from tdmr1_cli.run_command import continue_run, start_run


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
    """Make a few-step LoRA out of a multi-step model (TDM), without any reward.

    The LoRA is exported into the run folder at the end; give it to `tdmr1 train --lora`.
    """
    flags = Flags(config, model, (), preset, prompts, iterations, seed, sets or (), model_path)
    if resume is not None:
        continue_run(resume, flags, output, dry_run=dry_run, quiet=quiet, processes=processes)
    else:
        start_run("distill", flags, output, dry_run=dry_run, quiet=quiet, processes=processes)
