"""A run: the folder, the loop, evaluations, checkpoints and a clean stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import torch
from filelock import FileLock

from tdmr1_core import heartbeat
from tdmr1_core.config import RunConfig
from tdmr1_core.config_loading import Tree
from tdmr1_core.distill import DistillEngine
from tdmr1_core.distributed import ALONE, Processes, set_threads
from tdmr1_core.durable_files import lock_run, replace_durable, translate_write_errors
from tdmr1_core.engine import Engine
from tdmr1_core.errors import RunWarning, Tdmr1Error, warn
from tdmr1_core.models.roles import GENERATOR
from tdmr1_core.planning.choices import Choices, choose_for_run
from tdmr1_core.planning.free_memory import free_memory
from tdmr1_core.plugins import Extensions, discover
from tdmr1_core.preflight.prompts import check_lengths
from tdmr1_core.preflight.resolved import ResolvedRun, freeze_rewards, resolve_run
from tdmr1_core.preflight.trackers import check_trackers
from tdmr1_core.records import Prompt
from tdmr1_core.runs.checkpoints.checkpoint import (
    checkpoint_folders,
    go_back_to_good,
    load_checkpoint,
    mark_good,
    save_checkpoint,
)
from tdmr1_core.runs.checkpoints.fingerprints import (
    check_same_base,
    check_same_lora,
    differences,
    fingerprint_inputs,
    update_config,
    write_config,
)
from tdmr1_core.runs.checkpoints.resume import (
    CHECKPOINTS,
    Changes,
    ResumePoint,
    find_resume_point,
)
from tdmr1_core.runs.checkpoints.run_config import CONFIG, Fingerprints, load_run_config, read_header
from tdmr1_core.runs.evaluation.evaluate import Evaluation
from tdmr1_core.runs.evaluation.evaluator import Evaluator, build_evaluator
from tdmr1_core.runs.evaluation.first_evaluation import load_first_evaluation, save_first_evaluation
from tdmr1_core.runs.evaluation.guard import GuardReading, GuardStopped
from tdmr1_core.runs.metrics_log import RunLog
from tdmr1_core.runs.missing_inputs import check_inputs, needed_by_resume
from tdmr1_core.runs.observer import Observer
from tdmr1_core.runs.output.previews import SAMPLES, preview_file, save_comparison, save_preview, shown
from tdmr1_rewards.calling import interrupts
from tdmr1_rewards.errors import describe_error

if TYPE_CHECKING:
    from tdmr1_core.runs.output.resources import ResourceLog
    from tdmr1_core.runs.tracking.client import Trackers

STOPPING_LIMIT = 15.0
"""Seconds that a run waits for the current call of a reward after it was asked to stop."""


@dataclass(frozen=True)
class RunResult:
    """How a run ended. `nothing_learned` is the reason why a complete run never updated its generator, or None."""

    folder: Path
    iterations: int
    finished: bool
    before: tuple[Evaluation, ...] = ()
    after: tuple[Evaluation, ...] = ()
    before_after: Path | None = None
    nothing_learned: str | None = None


class Run:
    """One run folder. Make it with `Run.create` or `Run.resume`, then `execute` it once.

    All processes of a run make the same Run and execute it together. Only the first one writes.
    """

    def __init__(
        self,
        folder: Path,
        resolved: ResolvedRun,
        resume_point: ResumePoint | None = None,
        lock: FileLock | None = None,
        processes: Processes = ALONE,
    ) -> None:
        self.folder = folder
        self.resolved = resolved
        self.config = resolved.config
        self.processes = processes
        self.is_loaded = False
        self.choices: Choices | None = None
        """What was chosen for the GPUs of a new run."""
        self._resume_point = resume_point
        self._lock = lock
        self._fingerprints = Fingerprints()
        self._changed_inputs: list[RunWarning] = []
        self.stop_signal: int | None = None
        """The signal that asked for a stop."""
        self._stop = False
        """Whether this process was asked to stop."""
        self._stopping = False
        """Whether all processes have agreed to stop."""
        self._saved_at: int | None = None
        self._files: dict[str, bytes] = {}
        self._logged_at = 0
        self._last_skipped: tuple[str, ...] = ()

    @property
    def changes(self) -> Changes:
        """Settings that changed since the run was stopped, as (before, now) by dotted name."""
        return self._resume_point.changes if self._resume_point else {}

    @classmethod
    def create(
        cls,
        config: RunConfig | ResolvedRun,
        folder: Path,
        extensions: Extensions | None = None,
        processes: Processes = ALONE,
        announce: Callable[[str], None] = lambda _: None,
        files: Mapping[str, bytes] | None = None,
    ) -> Run:
        """A new run in a folder that is empty or does not exist.

        Settings that are not resolved yet are resolved here. On GPUs, settings of batch and memory that are `auto` are
        chosen for the free memory; `announce` gets a line of text if this takes seconds. The first process decides
        about folder and config. `files` are written into the folder, such as prompts that no other file has. Raises
        Tdmr1Error for a used folder, and as `resolve_run` does.
        """
        resolved = (
            config if isinstance(config, ResolvedRun) else processes.on_each(lambda: resolve_run(config, extensions))
        )

        def measure() -> float | None:
            _check_processes(resolved, processes)
            return free_memory(processes.device(resolved.config.model.device))

        room = processes.on_each(measure)
        rooms = [] if room is None else processes.gather(room)  # all processes have a GPU, or none has

        def begin() -> tuple[Path, RunConfig, Choices | None]:
            unused, frozen = _unused(folder.absolute()), freeze_rewards(resolved)
            choices = choose_for_run(frozen, resolved.entry, rooms, announce) if rooms else None
            return unused, frozen if choices is None else choices.config, choices

        folder, kept, choices = processes.on_first(begin)
        # The settings of the first process are those of all.
        if processes.any(kept != resolved.config):
            resolved = processes.on_each(partial(resolved.with_choices, kept))
        run = cls(folder, resolved, processes=processes)
        run.choices = choices
        run._files = dict(files or {})
        return run

    @classmethod
    def resume(
        cls,
        folder: Path,
        extensions: Extensions | None = None,
        processes: Processes = ALONE,
        iterations: int | None = None,
        changes: Tree | None = None,
    ) -> Run:
        """Continue a run at its latest intact checkpoint, with any number of processes.

        With `iterations`, the run gets this total number; its learning rates keep their schedule. `changes` are
        settings with absolute paths, such as the new places of inputs that were moved; config.yaml gets them too. The
        folder is locked from here on. Raises Tdmr1Error for all inputs that cannot be found, if there is nothing to
        continue, if another process uses the folder, and as `resolve_run` does.
        """
        folder, extensions = folder.absolute(), extensions or discover()
        with ExitStack() as failing:
            locks: list[FileLock] = []

            def take_over() -> ResumePoint:
                config = load_run_config(folder, changes)  # before a lock file is written into the folder
                check_inputs(folder, config, extensions, needed_by_resume(config))
                locks.append(lock_run(folder))
                failing.callback(locks[0].release)
                return find_resume_point(folder, iterations, changes)

            found = processes.on_first(take_over)
            resolved = processes.on_each(lambda: resolve_run(found.config, extensions, run_folder=folder))
            processes.on_each(lambda: _check_processes(resolved, processes))
            run = cls(folder, resolved, found, next(iter(locks), None), processes)
            failing.pop_all()
            return run

    def request_stop(self) -> None:
        """Ask for a stop after the current iteration, which is saved, as the first Ctrl-C does."""
        self._stop = True

    def execute(self, observer: Observer) -> RunResult:
        """Load, evaluate, iterate, save.

        One Ctrl-C or SIGTERM finishes the iteration and saves; a second one interrupts at once.
        """
        with ExitStack() as closing:
            closing.callback(self._release)
            set_threads(self.config.threads)
            device, leads = self.processes.device(self.config.model.device), self.processes.first
            if self.config.memory.shard and self.processes.count == 1:
                _warn_of_sharding()
            if self.config.tracking:
                self.processes.on_first(lambda: check_trackers(self.config.tracking or ()))
            self._fingerprints = self.processes.on_first(lambda: fingerprint_inputs(self.resolved))
            if self._resume_point is not None:
                self.processes.on_first(self._warn_of_changes)
            # Rewards are built before the model is loaded.
            evaluator = self.processes.on_each(
                lambda: build_evaluator(self.resolved, self._fingerprints, device, closing, warns=leads)
            )
            engine = self._load_engine(device, closing)
            if leads:
                self._check_prompt_lengths(engine)
            self.processes.on_first(lambda: self._begin(engine, evaluator))
            self.is_loaded = True
            with self._stop_on_signals(observer), heartbeat.stage("iterations"):
                result = self._lead(engine, evaluator, observer) if leads else self._follow(engine, evaluator)
            self.processes.leave()
            return result

    def _load_engine(self, device: torch.device, closing: ExitStack) -> Engine:
        """The engine, with the state of the checkpoint that the run continues at."""
        kind = Engine if self.config.kind == "train" else DistillEngine
        engine = kind.from_resolved(self.resolved, run_folder=self.folder, processes=self.processes, device=device)
        closing.callback(engine.close)
        point = self._resume_point
        if point is not None:
            self.processes.on_each(lambda: load_checkpoint(engine, point.checkpoint, with_rewards=True))
            self._saved_at = engine.iteration_index
        else:
            engine.fix_noise_levels()
            self.config = engine.config
        engine.encode_ahead([*self.resolved.evaluated_prompts, *shown(self._shown_prompts)])
        return engine

    def _check_prompt_lengths(self, engine: Engine) -> None:
        """Warn of prompts that the text encoders truncate."""
        readers = engine.roles.backbone.readers()
        for prompt_set in self.resolved.evaluation_prompts:
            if found := check_lengths(prompt_set, readers, self.resolved.rewards, self.folder):
                warn(str(found), code=found.code, **found.values)

    def _release(self) -> None:
        """Unlock the folder."""
        if self._lock is not None:
            self._lock.release()

    def _lead(self, engine: Engine, evaluator: Evaluator, observer: Observer) -> RunResult:
        """The first process: iterate and write everything."""
        with ExitStack() as closing:
            board = self.config.saving.tensorboard and self.config.tracking is None
            log = RunLog(self.folder, tensorboard=board, trackers=self._open_trackers(observer))
            closing.push(lambda error, *_: log.close(wait=error is not KeyboardInterrupt))
            try:
                self._save_group_images(engine, closing)
                with interrupts.listening(observer.waiting):
                    return self._loop(engine, evaluator, log, observer)
            except BaseException:
                self._save_after_error(engine, log)
                raise

    def _open_trackers(self, observer: Observer) -> Trackers | None:
        if not self.config.tracking:
            return None
        from tdmr1_core.runs.tracking.client import Trackers

        return Trackers(self.folder, self.config, announce=observer.tracked)

    def _follow(self, engine: Engine, evaluator: Evaluator) -> RunResult:
        """Every other process: its part of each iteration and each evaluation."""
        if self._is_evaluated(engine.iteration_index) and engine.iteration_index < self.config.iterations:
            self._evaluate(engine, evaluator)
        over = self._is_over(engine)
        while not over:
            engine.iteration()
            last = self._is_over(engine)
            if self._is_evaluated(engine.iteration_index) and not last:
                self._evaluate(engine, evaluator)
            over = last or self._is_over(engine)
        if self._result(engine).finished:
            self._evaluate(engine, evaluator)
        return self._result(engine)

    def _is_over(self, engine: Engine) -> bool:
        """Whether the run is complete, or any process was asked to stop. All processes call this together."""
        return self._is_stopping() or engine.iteration_index >= self.config.iterations

    def _is_stopping(self) -> bool:
        """Whether any process was asked to stop. All processes call this together."""
        self._stopping = self.processes.any(self._stop)
        return self._stopping

    def _loop(self, engine: Engine, evaluator: Evaluator, log: RunLog, observer: Observer) -> RunResult:
        started_at = self._logged_at = engine.iteration_index
        # The evaluation after the last checkpoint may be missing or incomplete: it is repeated.
        repeat = self._is_evaluated(started_at)
        if self._resume_point is None:
            log.open_board()
        else:
            evaluated = started_at - 1 if repeat else started_at
            log.go_back(started_at, evaluated=evaluated)
            if evaluator.guard is not None:
                evaluator.guard.recall(self.folder, evaluated)
        observer.started(engine)
        before: tuple[Evaluation, ...] = ()
        if repeat and started_at < self.config.iterations:
            results = self._evaluate(engine, evaluator, log, observer)
            before = results if started_at == 0 else ()
            if before and not self._stopping:
                save_first_evaluation(self.folder, evaluator.subject, before)
        # The last session may have ended between a checkpoint and its grid.
        if self.config.saving.samples_every > 0 and not preview_file(engine, self.folder).exists():
            self._save_preview(engine, evaluator, log)
        resources = self._open_resource_log(engine)
        over = self._is_over(engine)
        while not over:
            try:
                report = engine.iteration()
            except interrupts.Interrupted:  # while a reward waited, before anything was updated
                break
            self._last_skipped = report.skipped
            log.metrics(report.step, report.metrics)
            self._logged_at = report.step
            resources.write(report.step)
            observer.iteration(report)
            last = self._is_over(engine)
            if last or report.step % self.config.saving.checkpoint_every == 0:
                self._save(engine, observer)
            if self._is_previewed(report.step, last):
                self._save_preview(engine, evaluator, log)
            if self._is_evaluated(report.step) and not last:
                self._evaluate(engine, evaluator, log, observer)
            over = last or self._is_over(engine)
        result = self._result(engine)
        if not result.finished:
            self._save(engine, observer)
            return result
        after = self._evaluate(engine, evaluator, log, observer)
        if self._stopping and self.resolved.evaluation_rewards:
            warn(
                f"the last evaluation was interrupted; `tdmr1 train --resume {self.folder}` repeats it",
                code="evaluation-cut-off",
                run=str(self.folder),
            )
        before = before or load_first_evaluation(self.folder, evaluator.subject)
        comparison = save_comparison(engine, self._shown_prompts, self.folder)
        log.image(comparison.stem, engine.iteration_index, comparison)
        return replace(result, before=before, after=after, before_after=comparison)

    def _save_group_images(self, engine: Engine, closing: ExitStack) -> None:
        """From here on, the engine saves the best and the worst image of a group for the report."""
        from tdmr1_core.runs.output.group_images import GroupImages

        manager = engine.hooks.manager
        manager.register(plugin := GroupImages(self.folder, self._is_previewed))
        closing.callback(manager.unregister, plugin)

    def _open_resource_log(self, engine: Engine) -> ResourceLog:
        """The log of time and memory, with a first line."""
        from tdmr1_core.runs.output.resources import ResourceLog

        log = ResourceLog(self.folder, engine.roles.backbone.device, self.processes.count)
        log.write(engine.iteration_index)
        return log

    def _save_preview(self, engine: Engine, evaluator: Evaluator, log: RunLog) -> None:
        save_preview(engine, self._shown_prompts, self.folder, evaluator.runner(engine))
        log.image(SAMPLES, engine.iteration_index, preview_file(engine, self.folder))

    def _is_evaluated(self, step: int) -> bool:
        """Whether an evaluation follows iteration `step`; 0 is the start of the run."""
        every = self.config.evaluation.every
        return step in (0, self.config.iterations) or (every > 0 and step % every == 0)

    def _is_previewed(self, step: int, last: bool = False) -> bool:
        """Whether an image grid is written after iteration `step`, which is the `last` of this session."""
        every = self.config.saving.samples_every
        return every > 0 and (last or step % every == 0 or step == self.config.iterations)

    def _evaluate(
        self,
        engine: Engine,
        evaluator: Evaluator,
        log: RunLog | None = None,
        observer: Observer | None = None,
    ) -> tuple[Evaluation, ...]:
        """Evaluate, and in the first process, which has a log, write the results and obey the guard.

        All processes call this together. Nothing is written for an evaluation that is stopped, so that a resume repeats
        it. The results of an earlier session stay until new ones are written.
        """
        observer = observer or Observer()
        with heartbeat.stage("evaluation", limited=False):  # rewards have time limits of their own
            try:
                results = evaluator.evaluate(engine, observer, self._is_stopping)
            except interrupts.Interrupted:
                return ()
            if self.resolved.evaluation_rewards and not self._is_stopping():
                if log is not None:
                    seed = self.config.evaluation.seed
                    log.image_scores(engine.iteration_index, [result.score_row(seed) for result in results])
                    log.evaluations(engine.iteration_index, [row for result in results for row in result.rows()])
                reading = evaluator.read_guard(engine, results)
                if reading is not None and log is not None:
                    log.guard(reading.step, reading.row())
                    for alarm in reading.alarms:
                        observer.alarmed(reading.step, alarm)
                    self._obey_guard(reading, engine, observer)
        return tuple(results)

    def _obey_guard(self, reading: GuardReading, engine: Engine, observer: Observer) -> None:
        """With `guard.stop`: mark the checkpoint as good, or raise GuardStopped for an alarm."""
        if not self.config.guard.stop:
            return
        self._save(engine, observer)
        checkpoints = self.folder / CHECKPOINTS
        if not reading.alarms:
            mark_good(checkpoints, checkpoints / f"step-{reading.step:06d}")
            return
        good = go_back_to_good(checkpoints)
        kept = f"the last checkpoint without an alarm is {good}" if good else "no checkpoint passed the guard"
        raise GuardStopped(
            f"the guard stopped the run after iteration {reading.step}: {reading.alarms[0]}",
            f"{kept}; look at the images in {self.folder / SAMPLES}, and see docs/faults.md",
            code="guard-stopped",
            values={"step": reading.step, "alarm": reading.alarms[0], "good": good and str(good)},
        )

    @property
    def _shown_prompts(self) -> tuple[Prompt, ...]:
        """The prompts of the image grids: the held-out ones, or the training prompts if there are no others."""
        return self.resolved.evaluation_prompts[-1].prompts

    def _result(self, engine: Engine) -> RunResult:
        finished = engine.iteration_index >= self.config.iterations
        nothing = None
        if finished and engine.trained[GENERATOR].updates == 0:
            reasons = dict.fromkeys(skipped.partition(": ")[2] for skipped in self._last_skipped)
            nothing = "; ".join(reasons) or "an earlier part of the run skipped every update"
        return RunResult(self.folder, engine.iteration_index, finished, nothing_learned=nothing)

    def _save(self, engine: Engine, observer: Observer) -> None:
        if self._saved_at != engine.iteration_index:
            observer.saved(self._write_checkpoint(engine))

    def _write_checkpoint(self, engine: Engine) -> Path:
        self._saved_at = engine.iteration_index  # also if it fails: it is not tried again
        with heartbeat.stage(heartbeat.SAVING):
            return save_checkpoint(engine, self.folder / CHECKPOINTS, self.config.saving.keep)

    def _save_after_error(self, engine: Engine, log: RunLog) -> None:
        """Save the last complete iteration and its metrics, so that a resume continues there with the same bits.

        Nothing is saved after an error in the middle of an update, or after a failed save: the last checkpoint is what
        a resume continues at. A failure here is a warning, because the first error is the one to raise.
        """
        step, report = engine.iteration_index, engine.last_report
        if not engine.is_complete or self._saved_at == step:
            return
        try:
            if report is not None and self._logged_at < step:
                log.complete_metrics(step, report.metrics)
            self._write_checkpoint(engine)
        except Exception as error:
            reason, where = describe_error(error), str(self.folder / CHECKPOINTS)
            warn(f"iteration {step} could not be saved: {reason}", code="not-writable", step=step, path=where)

    @contextmanager
    def _stop_on_signals(self, observer: Observer) -> Iterator[None]:
        """The first SIGINT or SIGTERM asks for a stop after this iteration; the second interrupts at once.

        The first one also ends the wait for rewards that hang, with one process: others would wait for its scores.
        Python delivers signals to the main thread only; a run in another thread does not handle them.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def request_stop(number: int, frame: FrameType | None) -> None:
            if self._stop:
                raise KeyboardInterrupt
            self.stop_signal = number
            self.request_stop()
            interrupts.interrupt(STOPPING_LIMIT if self.processes.count == 1 else None)
            observer.stopping()

        former = {number: signal.signal(number, request_stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def _begin(self, engine: Engine, evaluator: Evaluator) -> None:
        """In the first process: check the rewards on servers, then open the folder."""
        evaluator.check_groups(engine)
        self._open_folder(engine)

    def _open_folder(self, engine: Engine) -> None:
        """Lock a new folder and write its config.yaml; check that a resumed run has the same model, and log it."""
        with translate_write_errors(self.folder):
            (self.folder / SAMPLES).mkdir(parents=True, exist_ok=True)
            if self._resume_point is not None:
                check_same_base(self.folder, engine.model_files)
                check_same_lora(self.folder, engine.model_files)
                if load_run_config(self.folder) != self._resume_point.config:
                    update_config(self.folder, self._resume_point.config)
                self._resume_point.record(self.folder, [str(warning) for warning in self._changed_inputs])
                return
            self._lock = lock_run(self.folder)
            if (self.folder / CONFIG).exists():
                raise _used(self.folder, "choose another --output")
            for name, content in self._files.items():
                replace_durable(self.folder / name, content)
            write_config(self.folder, self.config, self._fingerprints, engine.model_files)

    def _warn_of_changes(self) -> None:
        """Warn of prompts and rewards that changed since the run began."""
        self._changed_inputs = differences(read_header(self.folder), self._fingerprints)
        for warning in self._changed_inputs:
            warn(str(warning), code=warning.code, **warning.values)


def _unused(folder: Path) -> Path:
    """The folder of a new run. Raises Tdmr1Error if it is used."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if checkpoint_folders(folder / CHECKPOINTS):
            hint = f"continue it with `tdmr1 train --resume {folder}`, or choose another --output"
        elif (folder / CONFIG).exists():
            hint = "that run ended before its first checkpoint: remove the folder, or choose another --output"
        else:
            hint = "choose another --output"
        raise _used(folder, hint)
    return folder


def _used(folder: Path, hint: str) -> Tdmr1Error:
    return Tdmr1Error(
        f"the run folder {folder} is already used", hint, code="run-folder-used", values={"folder": str(folder)}
    )


def _warn_of_sharding() -> None:
    reason = "there is a single process"
    warn(f"memory.shard has no effect: {reason}", code="setting-ineffective", setting="memory.shard", reason=reason)


def _check_processes(resolved: ResolvedRun, processes: Processes) -> None:
    """Raise Tdmr1Error for several processes if a reward asks people: each process would open its own page."""
    if processes.count > 1 and resolved.human_rewards:
        name = resolved.human_rewards[0]
        raise Tdmr1Error(
            f"reward {name!r} asks people and needs a single process, but there are {processes.count}",
            "remove --processes",
            code="processes-count",
            values={"reward": name, "processes": processes.count},
        )
