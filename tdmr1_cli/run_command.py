"""What `train` and `distill` share: starting and continuing a run, and what is said when it ends."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tdmr1_cli.commands.plan import say_estimate
from tdmr1_cli.multiprocess import launch, wanted
from tdmr1_cli.options import Flags, Kind, Settings, resolve_settings
from tdmr1_cli.output import data, message, plus_minus, signed, table
from tdmr1_cli.signals import Stopped, leaving_on_sigterm
from tdmr1_cli.targets import check_run
from tdmr1_core.distributed import check_split, join_processes, rank_and_world
from tdmr1_core.errors import Tdmr1Error

if TYPE_CHECKING:
    from tdmr1_core.config import RunConfig
    from tdmr1_core.plugins import Extensions
    from tdmr1_core.runs.evaluation.evaluate import Evaluation
    from tdmr1_core.runs.run import Run, RunResult

RUNS = Path("runs")


def start_run(
    kind: Kind, flags: Flags, output: Path | None, *, dry_run: bool, quiet: bool, processes: int | None = None
) -> None:
    """Resolve the settings and run them in a new folder, in several processes at once, or only show them."""
    from tdmr1_core.plugins import discover

    extensions = discover()
    settings = resolve_settings(flags, kind, extensions)
    folder = output or default_folder(settings)
    check_writable(folder)
    count = wanted(processes)
    check_split(settings.config.batch.groups, count)
    from tdmr1_core.preflight.checks import check_settings

    idle = check_settings(settings.config, settings.entry, extensions)
    if count > rank_and_world()[1] and not dry_run:
        launch(count, partial(start_run, kind, flags, folder, dry_run=False, quiet=quiet))
        return
    _note(idle)
    quiet = quiet or rank_and_world()[0] > 0
    if not quiet:
        _say_what_rewards_are(settings, extensions)
    if dry_run:
        _show_dry_run(settings, extensions, folder, count)
        return
    _say_loading(quiet)
    from tdmr1_core.runs.run import Run

    run = Run.create(settings.config, folder, extensions, join_processes(settings.config.model.device))
    if not quiet:
        _say_what_was_chosen(settings.config, run.config)
    _execute(run, quiet)


def continue_run(
    folder: Path, flags: Flags, output: Path | None, *, dry_run: bool, quiet: bool, processes: int | None = None
) -> None:
    """Continue a run folder, with as many processes as now wanted.

    Raises Tdmr1Error for any setting beside it: a run keeps the settings it began with.
    """
    if flags != Flags() or output is not None or dry_run:
        raise Tdmr1Error(
            "--resume takes no other setting than --processes and --quiet: a run keeps the settings it began with",
            "leave the others out, or start a new run with another --output",
        )
    check_run(folder)
    from tdmr1_core.plugins import discover
    from tdmr1_core.preflight.checks import check_settings
    from tdmr1_core.runs.checkpoints.resume import load_run_config

    extensions, config = discover(), load_run_config(folder)
    idle = check_settings(config, extensions.entry(config.model), extensions)
    count = wanted(processes)
    if count > rank_and_world()[1]:
        launch(count, partial(continue_run, folder, flags, output, dry_run=False, quiet=quiet))
        return
    _note(idle)
    quiet = quiet or rank_and_world()[0] > 0
    _say_loading(quiet)
    from tdmr1_core.runs.run import Run

    run = Run.resume(folder, extensions, join_processes(config.model.device))
    if rank_and_world()[0] == 0:
        for name, (before, now) in run.changes.items():
            message(f"{name} was {before} and is now {now}")
    _execute(run, quiet)


def default_folder(settings: Settings) -> Path:
    """runs/<model>-<rewards>-<time>."""
    config = settings.config
    what = "+".join(reward.name for reward in config.rewards) if config.kind == "train" else "distill"
    return RUNS / f"{settings.entry.name}-{what}-{time.strftime('%Y%m%d-%H%M%S')}"


def check_writable(folder: Path) -> None:
    """Raise Tdmr1Error where a folder can't be made or written, before minutes go by."""
    existing = folder.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise Tdmr1Error(f"{folder} can't be written: {existing} is not a folder", "choose another --output")
    if not os.access(existing, os.W_OK):
        raise Tdmr1Error(f"{folder} can't be written: {existing} is read-only for you", "choose another --output")


def _note(sentences: Sequence[str]) -> None:
    """Say what has no effect, once for all processes."""
    if rank_and_world()[0] == 0:
        for sentence in sentences:
            message(f"note: {sentence}")


def _say_loading(quiet: bool) -> None:
    if not quiet:
        message("loading torch and diffusers …")


def _say_what_rewards_are(settings: Settings, extensions: Extensions) -> None:
    """Name what each reward that no plugin registered was taken for."""
    from tdmr1_rewards.sources.source import find_reward

    for reward in settings.config.rewards:
        found = find_reward(extensions.plugins.rewards, reward.source or reward.name, reward.python)
        if found.taken_as:
            message(f"reward {reward.name} (from {found.provenance}): taken as {found.taken_as}")


def _say_what_was_chosen(given: RunConfig, kept: RunConfig) -> None:
    """Name the options of rewards that the run has filled in."""
    for before, after in zip(given.rewards, kept.rewards, strict=True):
        chosen = {name: value for name, value in after.options.items() if before.options.get(name) != value}
        if chosen:
            message(f"reward {after.name}: {', '.join(f'{name} is {value}' for name, value in chosen.items())}")


def _show_dry_run(settings: Settings, extensions: Extensions, folder: Path, processes: int) -> None:
    """The resolved settings on stdout; what they mean for an iteration on stderr."""
    import yaml

    from tdmr1_core.config_loading import dump
    from tdmr1_core.prompts.sets import load_prompts, training_prompts

    config = settings.config
    source = training_prompts(config, extensions)
    prompts = load_prompts(source, settings.entry.domain)
    images = config.batch.groups * config.batch.group_size
    data(yaml.safe_dump(dump(config), sort_keys=False).rstrip())
    message(f"preset: {settings.preset or 'none'}")
    message(f"run folder: {folder}")
    message(f"prompts: {len(prompts)} in {source}")
    message(f"the run: {config.iterations} iterations, {config.iterations * images} images")
    _say_needs(settings, processes)


def _say_needs(settings: Settings, processes: int) -> None:
    """Batch arithmetic, memory and time, where the model's configs are at hand."""
    message("estimating memory and time …")
    from tdmr1_core.planning.estimate import plan

    try:
        say_estimate(plan(settings.config, settings.entry, processes))
    except Tdmr1Error as error:
        message(f"memory and time can't be estimated: {error.message}")


def _execute(run: Run, quiet: bool) -> None:
    from tdmr1_cli.progress import build_observer

    try:
        with build_observer(run.folder, quiet=quiet) as observer:
            result = run.execute(observer)
    except KeyboardInterrupt as interrupt:
        if not run.processes.first:
            raise
        raise Stopped(*_left_behind(run.folder, "stopped at once")) from interrupt
    except Tdmr1Error as error:
        saved = _last_checkpoint(run.folder)
        if saved is None or not run.is_loaded:
            raise
        kept = f"up to {saved} the run is saved: `{_resume_command(run.folder)}`"
        raise Tdmr1Error(error.message, "; ".join(filter(None, (error.hint, kept)))) from error
    if not run.processes.first:
        return
    if not result.finished:
        raise Stopped(
            *_left_behind(run.folder, f"stopped after iteration {result.iterations} of {run.config.iterations}")
        )
    if run.config.kind == "distill":
        _finish_distillation(result, run.extensions)
    else:
        _finish_training(result)


def _last_checkpoint(folder: Path) -> str | None:
    from tdmr1_core.runs.checkpoints.checkpoint import LATEST, read_pointer
    from tdmr1_core.runs.checkpoints.resume import CHECKPOINTS

    return read_pointer(folder / CHECKPOINTS / LATEST)


def _resume_command(folder: Path) -> str:
    return f"tdmr1 train --resume {folder}"


def _left_behind(folder: Path, what: str) -> tuple[str, str]:
    """What a stopped run leaves, and how to go on."""
    from tdmr1_core.runs.checkpoints.checkpoint import checkpoint_folders
    from tdmr1_core.runs.checkpoints.resume import CHECKPOINTS

    checkpoint = _last_checkpoint(folder)
    if checkpoint is None:
        if checkpoint_folders(folder / CHECKPOINTS):
            return what, _resume_command(folder)
        return f"{what}; nothing was saved yet", "start it again with another --output"
    return f"{what}; saved: {folder / 'checkpoints' / checkpoint}", _resume_command(folder)


def _finish_training(result: RunResult) -> None:
    before = {evaluation.prompt_set: evaluation for evaluation in result.before}
    _show_gains(result.after, before, _recorded_before(result.folder) if not before else {})
    _show_picture(result)
    message(f"run folder: {result.folder}")
    message("next: " + "\n      ".join(f"tdmr1 {verb} {result.folder}" for verb in ("evaluate", "report", "export")))


def _finish_distillation(result: RunResult, extensions: Extensions) -> None:
    from tdmr1_core.runs.output.export import EXPORT, export_lora, exported_of
    from tdmr1_core.runs.run import load_trained

    if result.after:
        _show_gains(result.after, {evaluation.prompt_set: evaluation for evaluation in result.before}, {})
    file = exported_of(result.folder / EXPORT, result.iterations)
    if file is not None:
        message(f"the distillation is finished, and its LoRA is there: {file}")
    else:
        with leaving_on_sigterm():
            file = export_lora(load_trained(result.folder, extensions), result.folder / EXPORT).file
    _show_picture(result)
    data(str(file))
    message(f"next: tdmr1 sample {result.folder} --prompt … --output …")
    message(f"      tdmr1 train --model … --lora {file}")


def _show_picture(result: RunResult) -> None:
    if result.before_after is not None:
        message(f"before and after: {result.before_after}")


def _show_gains(
    after: tuple[Evaluation, ...], before: Mapping[str, Evaluation], recorded: Mapping[tuple[str, str], str]
) -> None:
    """The table of every reward on every prompt set, before and after, with the gain on the same noises."""
    from tdmr1_cli.measuring import gain

    rows = []
    for evaluation in after:
        former = before.get(evaluation.prompt_set)
        for reward, value in evaluation.measures.items():
            started = (
                plus_minus(former.measures[reward]) if former else recorded.get((evaluation.prompt_set, reward), "–")
            )
            difference = signed(gain(evaluation, former, reward)) if former else "–"
            rows.append([evaluation.prompt_set, reward, started, plus_minus(value), difference, str(value.n)])
    table(["prompts", "reward", "before", "after", "gain", "images"], rows, title="mean ± standard error")


def _recorded_before(folder: Path) -> dict[tuple[str, str], str]:
    """A continued run's first evaluation, as its folder keeps it: (prompt set, reward) to mean ± standard error."""
    from tdmr1_core.runs.output.report import read_evaluations

    started = {(each.prompts, each.reward): each.points[0] for each in read_evaluations(folder)}
    return {key: plus_minus(value) for key, (step, value) in started.items() if step == 0}
