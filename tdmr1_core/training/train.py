"""`train`: a training from a Python program or notebook. It resolves its settings as `tdmr1 train` does."""

from __future__ import annotations

import signal
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tdmr1_core.config_loading import Tree, merge, nest_settings
from tdmr1_core.distributed import rank_and_world, set_waiting
from tdmr1_core.durable_files import check_writable
from tdmr1_core.errors import Tdmr1Error, warn
from tdmr1_core.models.library_logs import quiet_libraries
from tdmr1_core.plugins import discover
from tdmr1_core.preflight.layers import DEFAULT_MODEL, Flags, resolve_settings, run_changes
from tdmr1_core.runs.checkpoints.run_config import load_run_config
from tdmr1_core.runs.observer import Observer
from tdmr1_core.training.progress import Progress
from tdmr1_core.training.python_prompts import ListedPrompts, read_prompts
from tdmr1_core.training.python_rewards import match_objects, read_rewards
from tdmr1_core.training.trained_run import TrainedRun
from tdmr1_rewards.calling import session

if TYPE_CHECKING:
    from tdmr1_core.runs.run import Run

RUNS = Path("runs")
PROMPTS, EVALUATION_PROMPTS = "prompts.json", "evaluation_prompts.json"
"""The files of listed prompts in a run folder."""


def train(
    model: str | Path | None = None,
    reward: Any = None,
    iterations: int | None = None,
    *,
    prompts: Any = None,
    evaluation_prompts: Any = None,
    preset: str | None = None,
    config: str | Path | None = None,
    seed: int | None = None,
    output: str | Path | None = None,
    lora: str | Path | None = None,
    model_path: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    resume: str | Path | None = None,
    progress: bool | Observer = True,
) -> TrainedRun:
    """Train a model with rewards in a new run folder, or resume a run, and return the run.

    Arguments are those of `tdmr1 train`, and have the same defaults. `reward` is a name ("object_count"), a function of
    images and prompts in any style that tdmr1 knows, a Reward, a RewardSpec, a pair (reward, weight), a dict
    {"reward": …, "weight": …, "options": {…}}, or a list of these. `prompts` and `evaluation_prompts` are the name of
    a prompt set, file or dataset, or a list of strings or of dicts with the key "prompt" and metadata; lists are
    written into the run folder. `settings` are further settings, such as {"generator.learning_rate": 1e-4}. `output` is
    the run folder (default: runs/<model>-<rewards>-<time>, without a model or rewards that only `config` or `settings`
    name). `progress` is False for no output, or an Observer.

    `resume` is the folder of a run to continue; then only `iterations` (the new total), `settings` that may change, and
    the functions among its rewards can be given.

    One Ctrl-C (or the stop button of a notebook) finishes the iteration, saves it, and returns the run, whose
    `finished` is False. A second one raises KeyboardInterrupt at once. SIGTERM also finishes and saves the iteration,
    and then has its usual effect. If an exception ends a run that had started, the last complete iteration is saved,
    unless an update was under way, and the attribute `run` of the exception is the run. Raises Tdmr1Error for
    everything that the user can correct.
    """
    set_waiting()
    _reject_processes()
    observer = progress if isinstance(progress, Observer) else Progress() if progress else Observer()
    changed = nest_settings(settings or {})
    if resume is not None:
        _reject_others(
            model=model,
            prompts=prompts,
            evaluation_prompts=evaluation_prompts,
            preset=preset,
            config=config,
            seed=seed,
            output=output,
            lora=lora,
            model_path=model_path,
        )
        return _resume(Path(resume), reward, iterations, changed, observer)
    rewards = read_rewards(reward)
    named = DEFAULT_MODEL if model is None and config is None else model
    folder = Path(output if output is not None else _default_folder(named, rewards.names)).absolute()
    training = read_prompts(prompts, "prompts", folder / PROMPTS)
    evaluation = read_prompts(evaluation_prompts, "evaluation_prompts", folder / EVALUATION_PROMPTS)
    if evaluation_prompts is not None:
        evaluated = evaluation.prompts.name if evaluation else str(evaluation_prompts)
        changed = merge(changed, {"prompts": {"evaluate": evaluated}})
    flags = Flags(
        config=None if config is None else Path(config),
        model=None if model is None else str(model),
        rewards=rewards.settings,
        preset=preset,
        prompts=training.prompts.name if training else None if prompts is None else str(prompts),
        iterations=iterations,
        seed=seed,
        model_path=None if model_path is None else Path(model_path),
        lora=None if lora is None else Path(lora),
        settings=changed,
    )
    listed = [each for each in (training, evaluation) if each is not None]
    return _start(flags, rewards.objects, listed, folder, observer)


def _start(
    flags: Flags, objects: Mapping[str, Any], listed: Sequence[ListedPrompts], folder: Path, observer: Observer
) -> TrainedRun:
    """A new run in `folder`. `listed` are the prompts that are written into it."""
    sets = {each.prompts.name: each.prompts for each in listed}
    with session.provide(objects):
        resolved = resolve_settings(flags, "train", discover(), prompt_sets=sets)
        check_writable(folder)
        from tdmr1_core.runs.run import Run

        files = {Path(each.prompts.name).name: each.content for each in listed}
        return _execute(Run.create(resolved, folder, files=files), objects, observer)


def _resume(folder: Path, reward: Any, iterations: int | None, settings: Tree, observer: Observer) -> TrainedRun:
    """Continue a run at its latest checkpoint."""
    changes = run_changes(Flags(settings=settings))
    objects = match_objects(load_run_config(folder, changes), reward)
    with session.provide(objects):
        from tdmr1_core.runs.run import Run

        return _execute(Run.resume(folder, discover(), iterations=iterations, changes=changes), objects, observer)


def _execute(run: Run, objects: Mapping[str, Any], observer: Observer) -> TrainedRun:
    """Execute a run. An exception after its start gets the run as its attribute `run`."""
    for warning in run.resolved.warnings:
        warnings.warn(warning, stacklevel=4)
    if objects:
        _warn_of_objects(run.folder, list(objects))
    trained = TrainedRun(run.folder, objects)
    try:
        with _kept_threads(), quiet_libraries():
            result = run.execute(observer)
    except BaseException as error:
        if run.is_loaded:
            error.run = trained  # type: ignore[attr-defined]
            error.add_note(f"the run is in {run.folder}; continue it with {_resume_call(run.folder, list(objects))}")
        raise
    if not result.finished:
        warn(
            f"stopped after iteration {result.iterations} of {run.config.iterations}, which is saved; continue with "
            f"{_resume_call(run.folder, list(objects))}",
            code="interrupted",
            run=str(run.folder),
            iterations=result.iterations,
        )
    if result.nothing_learned is not None:
        warn(
            f"the run learned nothing: its generator was never updated ({result.nothing_learned})",
            code="nothing-learned",
            reason=result.nothing_learned,
        )
    if run.stop_signal == signal.SIGTERM:
        signal.raise_signal(signal.SIGTERM)  # the program gets it after the run is saved
    return trained


@contextmanager
def _kept_threads() -> Iterator[None]:
    """A context that restores the number of torch's threads, which a run limits."""
    import torch

    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _warn_of_objects(folder: Path, names: Sequence[str]) -> None:
    """Warn that the command line cannot resume the run."""
    what = "is an object" if len(names) == 1 else "are objects"
    warn(
        f"{' and '.join(map(repr, names))} {what} of this Python program, so `tdmr1 train --resume` cannot continue "
        f"the run; {_resume_call(folder, names)} can",
        code="resume-inputs",
        rewards=list(names),
    )


def _resume_call(folder: Path, names: Sequence[str]) -> str:
    """The call that continues a run."""
    listed = ", ".join(names)
    given = f", reward={listed if len(names) == 1 else f'[{listed}]'}" if names else ""
    return f"tdmr1_core.train(resume={str(folder)!r}{given})"


def _default_folder(model: str | Path | None, rewards: Sequence[str]) -> Path:
    """runs/<model>-<rewards>-<time>; a model or rewards that only settings name are omitted."""
    parts = ["" if model is None else Path(model).name, "+".join(rewards), time.strftime("%Y%m%d-%H%M%S")]
    return RUNS / "-".join(filter(None, parts))


def _reject_others(**arguments: Any) -> None:
    """Raise Tdmr1Error for arguments that a resumed run cannot have."""
    if given := [name for name, value in arguments.items() if value is not None]:
        raise Tdmr1Error(
            f"a resumed run keeps its settings, but got {', '.join(given)}",
            "give only resume, reward, iterations, settings and progress, or start a new run without resume",
            code="option-conflict",
            values={"arguments": given},
        )


def _reject_processes() -> None:
    """Raise Tdmr1Error if this is one of several processes of a launcher."""
    _, count = rank_and_world()
    if count > 1:
        raise Tdmr1Error(
            f"tdmr1_core.train runs in a single process, but this is one of {count}",
            "use `tdmr1 train --processes N`",
            code="processes-count",
            values={"processes": count},
        )
