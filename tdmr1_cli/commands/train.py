"""`tdmr1 train`: reinforce a few-step model, or continue any run."""

from __future__ import annotations

from tdmr1_cli.options import (
    ConfigArgument,
    DryRunOption,
    Flags,
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
from tdmr1_cli.run_command import continue_run, start_run


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

    Without any argument it trains the embedded model tiny-tdm on its own reward. Ctrl-C finishes the iteration, saves
    and leaves; --resume goes on from there, exactly as if nothing had happened.
    """
    flags = Flags(config, model, reward or (), preset, prompts, iterations, seed, sets or (), model_path, lora)
    if resume is not None:
        continue_run(resume, flags, output, dry_run=dry_run, quiet=quiet, processes=processes)
    else:
        start_run("train", flags, output, dry_run=dry_run, quiet=quiet, processes=processes)
