"""`tdmr1 train`: reinforces a few-step model, or resumes a run."""

from __future__ import annotations

from tdmr1_cli.options import (
    ConfigArgument,
    DryRunOption,
    IterationsOption,
    LoraOption,
    ModelOption,
    ModelPathOption,
    OutputOption,
    PresetOption,
    ProcessesOption,
    PromptsOption,
    QuietOption,
    ResumeOption,
    RewardOption,
    SeedOption,
    SetOption,
)
from tdmr1_cli.run_command import resume_run, start_run
from tdmr1_core.preflight.layers import Flags


def command(
    config: ConfigArgument = None,
    model: ModelOption = None,
    reward: RewardOption = None,
    preset: PresetOption = None,
    prompts: PromptsOption = None,
    iterations: IterationsOption = None,
    seed: SeedOption = None,
    output: OutputOption = None,
    sets: SetOption = None,
    model_path: ModelPathOption = None,
    lora: LoraOption = None,
    resume: ResumeOption = None,
    processes: ProcessesOption = None,
    dry_run: DryRunOption = False,
    quiet: QuietOption = False,
) -> None:
    """Reinforce a few-step model with rewards.

    Without arguments, the embedded model tiny-tdm is trained with its default reward. Ctrl-C finishes the iteration,
    saves and exits; --resume continues with bit-identical results.
    """
    flags = Flags(config, model, reward or (), preset, prompts, iterations, seed, sets or (), model_path, lora)
    if resume is not None:
        resume_run(resume, flags, output, dry_run=dry_run, quiet=quiet, processes=processes)
    else:
        start_run("train", flags, output, dry_run=dry_run, quiet=quiet, processes=processes)
