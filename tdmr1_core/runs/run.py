"""A run from its config to its last checkpoint: the folder, the loop, evaluations, pictures and a clean stop."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Protocol

import torch
from filelock import FileLock

from tdmr1_core.build.parts import choose_device
from tdmr1_core.config import RewardConfig, RunConfig
from tdmr1_core.distill import DistillEngine
from tdmr1_core.distributed import ALONE, Processes
from tdmr1_core.durable_files import lock_run, translate_write_errors
from tdmr1_core.engine import Engine
from tdmr1_core.errors import Tdmr1Error, warn
from tdmr1_core.models.roles import GENERATOR_EMA
from tdmr1_core.plugins import Extensions, discover
from tdmr1_core.preflight.absolute_paths import make_absolute
from tdmr1_core.preflight.checks import reject_contradictions
from tdmr1_core.preflight.evaluation_rewards import (
    evaluation_rewards,
    held_out_rewards,
    human_rewards,
    trained_directions,
    trained_reward_is_evaluated,
)
from tdmr1_core.prompts.sets import evaluation_prompts
from tdmr1_core.records import IterationReport, Prompt
from tdmr1_core.runs.checkpoints.checkpoint import (
    checkpoint_folders,
    go_back_to_good,
    latest_checkpoint,
    load_checkpoint,
    mark_good,
    save_checkpoint,
)
from tdmr1_core.runs.checkpoints.fingerprints import (
    CONFIG,
    Fingerprints,
    check_same_base,
    check_same_lora,
    differences,
    fingerprint_inputs,
    read_header,
    write_config,
)
from tdmr1_core.runs.checkpoints.resume import CHECKPOINTS, Changes, ResumePoint, find_resume_point, load_run_config
from tdmr1_core.runs.evaluation.evaluate import Evaluation, evaluate
from tdmr1_core.runs.evaluation.guard import Guard, GuardStopped, subject_fingerprint
from tdmr1_core.runs.metrics_log import Tracker
from tdmr1_core.runs.output.previews import SAMPLES, save_comparison, save_preview
from tdmr1_core.stages.scoring import build_runner, freeze_rewards
from tdmr1_rewards.calling import interrupts
from tdmr1_rewards.scoring.failures import RewardFailed
from tdmr1_rewards.scoring.runner import RewardRunner


class Observer(Protocol):
    """Whoever shows a run's progress. Every method may do nothing."""

    def started(self, engine: Engine) -> None:
        """Everything is loaded; iterations begin at `engine.iteration_index`."""

    def iteration(self, report: IterationReport) -> None:
        """An iteration is over."""

    def evaluating(self, role: str, prompt_set: str) -> None:
        """An evaluation begins."""

    def evaluated(self, step: int, evaluation: Evaluation) -> None:
        """An evaluation is over."""

    def saved(self, checkpoint: Path) -> None:
        """A checkpoint is written."""

    def waiting(self, text: str) -> None:
        """A reward says what it waits for, from a thread of its own."""

    def stopping(self) -> None:
        """A signal asked for a stop, maybe in the middle of a write; the iteration is finished and saved first."""


@dataclass(frozen=True)
class RunResult:
    """How a run ended."""

    folder: Path
    iterations: int
    finished: bool
    before: tuple[Evaluation, ...] = ()
    after: tuple[Evaluation, ...] = ()
    before_after: Path | None = None


class Run:
    """One run folder. Make it with `Run.create` or `Run.resume`, then `execute` it once.

    Several processes make the same run and execute it together; the first one alone writes, evaluates and is observed.
    """

    def __init__(
        self,
        folder: Path,
        config: RunConfig,
        extensions: Extensions,
        continuation: ResumePoint | None = None,
        lock: FileLock | None = None,
        processes: Processes = ALONE,
    ) -> None:
        self.folder = folder
        self.config = config
        self.extensions = extensions
        self.processes = processes
        self.is_loaded = False
        self._continuation = continuation
        self._lock = lock
        self._judge: RewardRunner | None = None
        self._guard: Guard | None = None
        self._prompt_sets: dict[str, list[Prompt]] = {}
        self._fingerprints = Fingerprints()
        self._differences: list[str] = []
        self._stop = False
        self._saved_at: int | None = None

    @property
    def changes(self) -> Changes:
        """Settings that are not what they were when the run was stopped, as (before, now) by dotted name."""
        return self._continuation.changes if self._continuation else {}

    @classmethod
    def create(
        cls, config: RunConfig, folder: Path, extensions: Extensions | None = None, processes: Processes = ALONE
    ) -> Run:
        """A new run in a folder that is empty or not there yet.

        Its config says what "auto" of rewards stands for, and where files and folders lie from anywhere.
        The first process's folder and config are those of all. Raises Tdmr1Error for a used or unwritable folder, and
        as the rewards do.
        """
        found = extensions or discover()
        _check(config, found, processes.count)
        config = make_absolute(config, found)
        kept = processes.on_first(lambda: (_unused(folder), freeze_rewards(config, found.plugins.rewards)))
        return cls(*kept, found, processes=processes)

    @classmethod
    def resume(cls, folder: Path, extensions: Extensions | None = None, processes: Processes = ALONE) -> Run:
        """Continue a run at its latest intact checkpoint, with any number of processes.

        Nobody else may write into its folder from here on. Raises Tdmr1Error if there is nothing to continue, or
        somebody writes into it already.
        """
        with ExitStack() as failing:
            locks: list[FileLock] = []

            def take_up() -> ResumePoint:
                load_run_config(folder)  # no lock is put into a folder that is no run's
                locks.append(lock_run(folder))
                failing.callback(locks[0].release)
                return find_resume_point(folder)

            found, extensions = processes.on_first(take_up), extensions or discover()
            _check(found.config, extensions, processes.count)
            run = cls(folder, found.config, extensions, found, next(iter(locks), None), processes)
            failing.pop_all()
            return run

    def execute(self, observer: Observer) -> RunResult:
        """Load, evaluate, iterate, save. One Ctrl-C or SIGTERM finishes the iteration and saves; a second leaves."""
        with ExitStack() as held:
            held.callback(self._release)
            set_threads(self.config.threads)
            self.processes.on_first(self._fingerprint_inputs)
            engine = self._load(held)
            self.processes.on_first(lambda: self._open_folder(engine))
            self.is_loaded = True
            with self._stopping_cleanly(observer):
                result = self._lead(engine, observer) if self.processes.first else self._follow(engine)
            self.processes.leave()
            return result

    def _load(self, held: ExitStack) -> Engine:
        """The engine, where the run stands, and the judge of evaluations; `held` lets go of what of them is there."""
        rewards = evaluation_rewards(self.config, self.extensions.plugins.rewards)
        trains = self.config.kind == "train"
        # Evaluations and iterations take turns, so the training's own rewards may judge both.
        shared = trains and rewards == self.config.rewards
        if self.processes.first and rewards and not shared:
            self._judge = self._build_judge(rewards)
            held.callback(self._judge.close)
        kind = Engine if trains else DistillEngine
        engine = kind.from_config(
            self.config, run_folder=self.folder, extensions=self.extensions, processes=self.processes
        )
        held.callback(engine.close)
        if shared and engine.scoring is not None:
            self._judge = engine.scoring.runner
        continuation = self._continuation
        if continuation is not None:
            self.processes.on_each(lambda: load_checkpoint(engine, continuation.checkpoint, with_rewards=True))
            self._saved_at = engine.iteration_index
        return engine

    def _release(self) -> None:
        """Let others write into the folder."""
        if self._lock is not None:
            self._lock.release()

    def _build_guard(self, engine: Engine) -> Guard | None:
        """Who watches over a training that is evaluated, if anybody is to."""
        settings = self.config.guard
        if self._judge is None or self.config.kind != "train" or not settings.enabled:
            return None
        if not trained_reward_is_evaluated(self.config, self.extensions.plugins.rewards):
            warn("evaluations judge none of the trained rewards, so the guard can't see one rise")
        rewards = held_out_rewards(self.config, self.extensions.plugins.rewards, engine.entry.domain)
        judge = self._build_judge(rewards) if rewards else None
        return Guard(
            settings, trained_directions(self.config), judge, subject_fingerprint(self.config, self._fingerprints)
        )

    def _watch(self, engine: Engine, tracker: Tracker, observer: Observer, results: Sequence[Evaluation]) -> None:
        """Let the guard look at an evaluation. Raises GuardStopped for an alarm that is to stop the run."""
        if self._guard is None:
            return
        look = self._guard.read(engine, results)
        tracker.guard(look.step, look.row())
        for alarm in look.alarms:
            warn(f"guard, iteration {look.step}: {alarm}")
        if not self.config.guard.stop:
            return
        self._save(engine, observer)
        checkpoints = self.folder / CHECKPOINTS
        if not look.alarms:
            mark_good(checkpoints, checkpoints / f"step-{look.step:06d}")
            return
        good = go_back_to_good(checkpoints)
        left = f"the last good checkpoint is {good}" if good else "there is no checkpoint that it had nothing against"
        raise GuardStopped(
            f"the guard stopped the run after iteration {look.step}: {look.alarms[0]}",
            f"{left}; look at {self.folder / SAMPLES}, and see docs/faults.md",
        )

    def _build_judge(self, rewards: Sequence[RewardConfig]) -> RewardRunner:
        device = str(choose_device(self.processes.device(self.config.model.device)))
        return build_runner(rewards, self.extensions.plugins, combine="weighted_sum", workers=1, device=device)

    def _lead(self, engine: Engine, observer: Observer) -> RunResult:
        """What the first process does: iterate, and write all of it down."""
        with ExitStack() as held:
            tracker = Tracker(self.folder, tensorboard=self.config.saving.tensorboard)
            held.callback(tracker.close)
            self._prompt_sets = evaluation_prompts(self.config, self.extensions, engine.entry.domain)
            self._guard = self._build_guard(engine)
            if self._guard is not None and self._guard.judge is not None:
                held.callback(self._guard.judge.close)
            try:
                with interrupts.listening(observer.waiting):
                    return self._loop(engine, tracker, observer)
            except RewardFailed:
                # Rewards are asked before an iteration updates anything, so what was learnt until then is whole.
                self._save(engine, observer)
                raise

    def _follow(self, engine: Engine) -> RunResult:
        """What every other process does: its part of each iteration, and nothing beside."""
        while not self._over(engine):
            engine.iteration()
        return self._result(engine)

    def _over(self, engine: Engine) -> bool:
        """Whether the run is at its end, or any process was asked to stop: all of them ask this in step."""
        return self.processes.any(self._stop) or engine.iteration_index >= self.config.iterations

    def _loop(self, engine: Engine, tracker: Tracker, observer: Observer) -> RunResult:
        saving, started_at = self.config.saving, engine.iteration_index
        # What was saved last may not have been evaluated any more, or not to the end: it is done again.
        again = self._is_evaluated(started_at)
        tracker.go_back(started_at, evaluated=started_at - 1 if again else started_at)
        if self._guard is not None:
            self._guard.recall(self.folder)
        observer.started(engine)
        before: tuple[Evaluation, ...] = ()
        if again and started_at < self.config.iterations:
            results = self._evaluate(engine, tracker, observer)
            before = results if started_at == 0 else ()
        if started_at == 0 and saving.samples_every:
            save_preview(engine, self._shown, self.folder)
        over = self._over(engine)
        while not over:
            try:
                report = engine.iteration()
            except interrupts.Interrupted:  # while a reward was asked, before anything was updated
                break
            tracker.metrics(report.step, report.metrics)
            observer.iteration(report)
            last = self._stop or self._result(engine).finished
            if last or report.step % saving.checkpoint_every == 0:
                self._save(engine, observer)
            if saving.samples_every and (last or report.step % saving.samples_every == 0):
                save_preview(engine, self._shown, self.folder)
            if self._is_evaluated(report.step) and not last:
                self._evaluate(engine, tracker, observer)
            over = self._over(engine)
        result = self._result(engine)
        if not result.finished:
            self._save(engine, observer)
            return result
        after = self._evaluate(engine, tracker, observer)
        if self._stop and self._judge is not None:
            warn(f"the last evaluation was cut off; `tdmr1 train --resume {self.folder}` makes it again")
        return replace(
            result, before=before, after=after, before_after=save_comparison(engine, self._shown, self.folder)
        )

    @property
    def _shown(self) -> list[Prompt]:
        """The prompts of the run's pictures: those that it isn't trained on, where there are some."""
        return list(self._prompt_sets.values())[-1]

    def _is_evaluated(self, step: int) -> bool:
        """Whether there is an evaluation after an iteration; 0 stands for the start."""
        every = self.config.evaluation.every
        return step in (0, self.config.iterations) or (every > 0 and step % every == 0)

    def _result(self, engine: Engine) -> RunResult:
        return RunResult(self.folder, engine.iteration_index, engine.iteration_index >= self.config.iterations)

    def _save(self, engine: Engine, observer: Observer) -> None:
        if self._saved_at == engine.iteration_index:
            return
        observer.saved(save_checkpoint(engine, self.folder / CHECKPOINTS, self.config.saving.keep))
        self._saved_at = engine.iteration_index

    @contextmanager
    def _stopping_cleanly(self, observer: Observer) -> Iterator[None]:
        """SIGINT and SIGTERM ask for a stop after this iteration; a second one interrupts at once."""

        def ask(number: int, frame: FrameType | None) -> None:
            if self._stop:
                raise KeyboardInterrupt
            self._stop = True
            interrupts.interrupt()
            observer.stopping()

        former = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def _open_folder(self, engine: Engine) -> None:
        """Make the folder this run's own, and write down what it is to do."""
        with translate_write_errors(self.folder):
            (self.folder / SAMPLES).mkdir(parents=True, exist_ok=True)
            if self._continuation is not None:
                check_same_base(self.folder, engine.model_files)
                check_same_lora(self.folder, engine.model_files)
                self._continuation.record(self.folder, self._differences)
                return
            self._lock = lock_run(self.folder)
            if (self.folder / CONFIG).exists():
                raise Tdmr1Error(f"the run folder {self.folder} is already used", "choose another --output")
            write_config(self.folder, self.config, self._fingerprints, engine.model_files)

    def _fingerprint_inputs(self) -> None:
        """See what the run stands on, and tell what of it has changed since it began."""
        self._fingerprints = fingerprint_inputs(self.config, self.extensions)
        if self._continuation is not None:
            self._differences = differences(read_header(self.folder), self._fingerprints)
        for sentence in self._differences:
            warn(sentence)

    def _evaluate(self, engine: Engine, tracker: Tracker, observer: Observer) -> tuple[Evaluation, ...]:
        """The averaged generator on every prompt set; nothing in a distillation without rewards.

        It is written down at the end, so that one which is stopped leaves nothing, and is made again by a resume.
        """
        if self._judge is None:
            return ()
        settings, results = self.config.evaluation, list[Evaluation]()
        for name, prompts in self._prompt_sets.items():
            if self._stop:
                break
            observer.evaluating(GENERATOR_EMA, name)
            with self._judge.unremembered():
                result = evaluate(
                    engine, self._judge, GENERATOR_EMA, name, prompts, images=settings.images, seed=settings.seed
                )
            observer.evaluated(engine.iteration_index, result)
            results.append(result)
        if not self._stop:
            tracker.evaluations(engine.iteration_index, [row for result in results for row in result.rows()])
            self._watch(engine, tracker, observer, results)
        return tuple(results)


def _unused(folder: Path) -> Path:
    """A folder for a new run. Raises Tdmr1Error for one that is used."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if checkpoint_folders(folder / CHECKPOINTS):
            hint = f"continue it with `tdmr1 train --resume {folder}`, or choose another --output"
        elif (folder / CONFIG).exists():
            hint = "that run ended before its first checkpoint: remove the folder, or choose another --output"
        else:
            hint = "choose another --output"
        raise Tdmr1Error(f"the run folder {folder} is already used", hint)
    return folder


def _check(config: RunConfig, extensions: Extensions, processes: int) -> None:
    """Raise Tdmr1Error for settings that undo one another, and for prompts that can't be had.

    Also for several processes where a reward asks people: each would open a page of its own, and wait there.
    """
    reject_contradictions(config, extensions.entry(config.model), extensions)
    asking = human_rewards(config, extensions.plugins.rewards)
    if processes > 1 and asking:
        raise Tdmr1Error(f"reward {asking[0]!r} asks people, and so needs a single process", "leave --processes out")


def load_trained(folder: Path, extensions: Extensions | None = None) -> Engine:
    """An engine with a run's latest weights, for sampling, evaluation and export, with nothing in fewer bits.

    Encoded prompts are kept in the run's folder of them only where it is still there and can be written.
    """
    config = load_run_config(folder)
    cache = config.memory.prompt_cache
    here = cache if cache and cache.is_dir() and os.access(cache, os.W_OK) else None
    whole = {"weights": "whole", "optimizer": "whole", "prompt_cache": here}
    config = config.model_copy(update={"memory": config.memory.model_copy(update=whole)})
    kind = Engine if config.kind == "train" else DistillEngine
    engine = kind.from_config(config, run_folder=folder, extensions=extensions)
    check_same_lora(folder, engine.model_files)
    load_checkpoint(engine, latest_checkpoint(folder / CHECKPOINTS), moments=False)
    return engine


def set_threads(most: int | None) -> None:
    """CPU threads of torch: as many as torch chose (physical cores, or OMP_NUM_THREADS), but at most this many."""
    if most is not None:
        torch.set_num_threads(min(most, torch.get_num_threads()))
