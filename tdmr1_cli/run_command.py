"""What `train` and `distill` share: start, resume or preview a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tdmr1_cli.multiprocess import launch
from tdmr1_cli.output import data, message, print_warnings
from tdmr1_cli.run_summary import (
    print_choices,
    print_distillation,
    print_encoding,
    print_estimate,
    print_training,
    speed_of,
)
from tdmr1_cli.signals import CheckFailed, Stopped
from tdmr1_cli.streams import losses_recorded
from tdmr1_cli.targets import RUNS, check_run
from tdmr1_cli.typed_secrets import with_typed_secrets
from tdmr1_core.distributed import ALONE, check_split, join_processes, rank_and_world, requested_processes
from tdmr1_core.durable_files import check_writable
from tdmr1_core.errors import Tdmr1Error, join_hints
from tdmr1_core.preflight.layers import Flags, Kind, resolve_settings, run_changes

if TYPE_CHECKING:
    from tdmr1_core.config import RunConfig
    from tdmr1_core.preflight.resolved import ResolvedRun
    from tdmr1_core.runs.run import Run, RunResult

LOADING = "loading torch and diffusers …"


def start_run(
    kind: Kind, flags: Flags, output: Path | None, *, dry_run: bool, quiet: bool, processes: int | None = None
) -> None:
    """Resolve the settings, then run them in a new folder, or only print them."""
    from tdmr1_core.plugins import discover

    resolved = resolve_settings(flags, kind, discover())
    folder = output or default_folder(resolved)
    check_writable(folder)
    rank, started = rank_and_world()
    count = requested_processes(processes, started)
    check_split(resolved.config.batch.groups, count)
    if resolved.config.tracking:
        _check_trackers(resolved.config.tracking)
    if count > started and not dry_run:
        _launch(count, partial(start_run, kind, flags, folder, dry_run=False, quiet=quiet), folder)
        return
    quiet = quiet or rank > 0
    print_warnings(resolved.warnings if rank == 0 else ())
    for reward in () if quiet else resolved.rewards:
        if reward.registered.taken_as is not None:
            from tdmr1_rewards.sources.source import usage

            used_as = usage(reward.registered, reward.config.options)
            message(f"reward {reward.config.name} (from {reward.registered.provenance}): used as {used_as}")
    if dry_run:
        from tdmr1_core.preflight.lengths import check_file_lengths

        print_warnings(check_file_lengths(resolved))
        message("checking this machine and the model …")
        from tdmr1_core.preflight.machine import check_machine

        check_machine(resolved)
        _print_dry_run(resolved, folder, count)
        return
    if not quiet:
        message(LOADING)
    from tdmr1_core.runs.run import Run

    processes_of_run = join_processes(resolved.config.model.device, resolved.config.processes_timeout)
    announce = (lambda _: None) if quiet else message
    run = Run.create(resolved, folder, processes=processes_of_run, announce=announce)
    if not quiet:
        _print_chosen_options(resolved.config, run.config)
        if run.choices is not None:
            print_choices(run.choices)
    _execute(run, quiet)


def resume_run(
    folder: Path, flags: Flags, output: Path | None, *, dry_run: bool, quiet: bool, processes: int | None = None
) -> None:
    """Resume a run folder, with any number of processes. `flags.iterations` is the new total number of iterations.

    The other settings of `flags` may be those that can change at a resume, such as paths of inputs that were moved.
    Raises Tdmr1Error for any other option, and for all inputs that cannot be found, before anything is loaded.
    """
    changing = Flags(
        model=flags.model, prompts=flags.prompts, sets=flags.sets, model_path=flags.model_path, lora=flags.lora
    )
    if replace(flags, iterations=None) != changing or output is not None or dry_run:
        raise Tdmr1Error(
            "--resume allows only --iterations, --processes, --quiet, and new paths with --set, --prompts, --model, "
            "--model-path and --lora: a run keeps the settings that it began with",
            "remove the other options, or start a new run with another --output",
            code="option-conflict",
        )
    check_run(folder)
    rank, started = rank_and_world()
    count = requested_processes(processes, started)
    from tdmr1_core.plugins import discover
    from tdmr1_core.runs.checkpoints.run_config import load_run_config
    from tdmr1_core.runs.missing_inputs import check_inputs, needed_by_resume

    extensions = discover()
    needed = needed_by_resume(load_run_config(folder, run_changes(changing)))
    flags = with_typed_secrets(flags, needed.rewards)
    changes = run_changes(replace(changing, sets=flags.sets))
    config = load_run_config(folder, changes)
    check_inputs(folder, config, extensions, needed_by_resume(config))
    if config.tracking:
        _check_trackers(config.tracking)
    if count > started:
        from tdmr1_core.preflight.resolved import resolve_run

        resolve_run(config, run_folder=folder)  # an error is reported once, before processes start
        _launch(count, partial(resume_run, folder, flags, output, dry_run=False, quiet=quiet), folder)
        return
    quiet = quiet or rank > 0
    if not quiet:
        message(LOADING)
    from tdmr1_core.runs.run import Run

    processes_of_run = join_processes(config.model.device, config.processes_timeout)
    run = Run.resume(folder, extensions, processes_of_run, iterations=flags.iterations, changes=changes)
    if rank == 0:
        print_warnings(run.resolved.warnings)
        for name, (before, now) in run.changes.items():
            message(f"{name} was {before} and is now {now}")
    _execute(run, quiet)


def _check_trackers(names: Sequence[str]) -> None:
    """Raise Tdmr1Error for trackers that are not installed, before torch is loaded."""
    from tdmr1_core.preflight.trackers import check_trackers

    check_trackers(names)


def _launch(count: int, job: Callable[[], None], folder: Path) -> None:
    """Run a job in several processes. If the user ended them, report what is saved."""
    try:
        launch(count, job)
    except KeyboardInterrupt as interrupt:
        raise Stopped(*_saved_state(folder, "stopped at once")) from interrupt


def default_folder(resolved: ResolvedRun) -> Path:
    """runs/<model>-<rewards>-<time>."""
    rewards = "+".join(reward.config.name for reward in resolved.rewards) or "distill"
    return RUNS / f"{resolved.entry.name}-{rewards}-{time.strftime('%Y%m%d-%H%M%S')}"


def _print_chosen_options(given: RunConfig, kept: RunConfig) -> None:
    """The options of rewards that were chosen for this machine."""
    for before, after in zip(given.rewards, kept.rewards, strict=True):
        chosen = {name: value for name, value in after.options.items() if before.options.get(name) != value}
        if chosen:
            listed = ", ".join(f"{name}={value}" for name, value in chosen.items())
            message(f"reward {after.name}: {listed} (chosen for this machine)")


def _print_dry_run(resolved: ResolvedRun, folder: Path, processes: int) -> None:
    """The settings on stdout; on stderr what an iteration is and what it needs.

    Raises Tdmr1Error, before anything is printed, for a model that a training would reject.
    """
    import yaml

    from tdmr1_core.config_loading import dump
    from tdmr1_core.planning.cards import card_of
    from tdmr1_core.planning.choices import choose_for_run
    from tdmr1_core.planning.estimate import Planner
    from tdmr1_core.planning.free_memory import device_name, free_memory

    config = resolved.config
    device = ALONE.device(config.model.device)
    room = free_memory(device)
    choices = choose_for_run(config, resolved.entry, [room] * processes, message)
    planned, reason = None, ""
    try:
        if choices is None:
            planned = Planner(resolved.entry, processes, message).plan(config)
        else:
            config, planned = choices.config, choices.planned
    except Tdmr1Error as error:
        if error.code != "plan-unavailable":
            raise
        reason = error.message
    images = config.batch.groups * config.batch.group_size
    data(*yaml.safe_dump(dump(config), sort_keys=False).rstrip().split("\n"))
    message(f"preset: {resolved.preset or 'none'}")
    message(f"run folder: {folder}")
    message(f"prompts: {len(resolved.prompts.prompts)} in {resolved.prompts.name}")
    message(f"run: {config.iterations} iterations, {config.iterations * images} images")
    if choices is not None:
        print_choices(choices)
    if planned is None:
        message(f"memory and time cannot be estimated: {reason}")
    else:
        print_estimate(planned, config.iterations, speed_of(card_of(device_name(device) or "")))
        print_encoding(planned, resolved)


def _execute(run: Run, quiet: bool) -> None:
    """Execute a run and print its result. Output that is lost is recorded in the run folder."""
    with losses_recorded(run.folder, lambda: run.is_loaded and run.processes.first):
        _execute_and_print(run, quiet)


def _execute_and_print(run: Run, quiet: bool) -> None:
    """Execute a run and print its result. A stop or an error names the last checkpoint."""
    from tdmr1_cli.progress import build_observer

    try:
        with build_observer(run.folder, quiet=quiet) as observer:
            result = run.execute(observer)
    except KeyboardInterrupt as interrupt:
        if not run.processes.first:
            raise
        raise Stopped(*_saved_state(run.folder, "stopped at once")) from interrupt
    except (Exception, SystemExit) as error:
        saved = _last_checkpoint(run.folder)
        if saved is None or not run.is_loaded:
            raise
        kept = f"the run is saved up to {saved}; continue with `{_resume_command(run.folder)}`"
        if not isinstance(error, Tdmr1Error):
            error.add_note(kept)
            raise
        hint = join_hints(error.hint, kept)
        raise Tdmr1Error(error.message, hint, code=error.code, values=error.values) from error
    if not run.processes.first:
        return
    if not result.finished:
        what = f"stopped after iteration {result.iterations} of {run.config.iterations}"
        raise Stopped(*_saved_state(run.folder, what))
    if run.config.kind == "distill":
        print_distillation(result, run.resolved.extensions)
    else:
        print_training(result)
    check_learned(result)


def check_learned(result: RunResult) -> None:
    """Raise CheckFailed for a complete run that never updated its generator."""
    if result.nothing_learned is None:
        return
    raise CheckFailed(
        f"the run learned nothing: its generator was never updated in {result.iterations} iterations "
        f"({result.nothing_learned})",
        "see zero_std_ratio and reward/…/unjudged in metrics.jsonl; use prompts that the reward can score, and groups "
        "that are large enough for images of one prompt to differ in reward",
        code="nothing-learned",
        values={
            "iterations": result.iterations,
            "reason": result.nothing_learned,
            "folder": str(result.folder),
        },
    )


def _last_checkpoint(folder: Path) -> str | None:
    from tdmr1_core.runs.checkpoints.checkpoint import LATEST, read_pointer
    from tdmr1_core.runs.checkpoints.resume import CHECKPOINTS

    return read_pointer(folder / CHECKPOINTS / LATEST)


def _resume_command(folder: Path) -> str:
    return f"tdmr1 train --resume {folder}"


def _saved_state(folder: Path, what: str) -> tuple[str, str]:
    """What is saved of a stopped run, and the hint how to continue."""
    from tdmr1_core.runs.checkpoints.checkpoint import checkpoint_folders
    from tdmr1_core.runs.checkpoints.resume import CHECKPOINTS

    checkpoint = _last_checkpoint(folder)
    if checkpoint is None:
        if checkpoint_folders(folder / CHECKPOINTS):
            return what, _resume_command(folder)
        return f"{what}; nothing was saved", "start it again with another --output"
    return f"{what}; saved: {folder / CHECKPOINTS / checkpoint}", _resume_command(folder)
