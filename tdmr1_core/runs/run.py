"""A run from its config to its last checkpoint: the folder, the loop, evaluations, pictures and a clean stop."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Protocol

import torch
import yaml
from filelock import FileLock

from tdmr1_core.assemble import choose_device
from tdmr1_core.config import RewardConfig, RunConfig
from tdmr1_core.configure import dump, fingerprint
from tdmr1_core.distill import DistillEngine
from tdmr1_core.engine import Engine
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.roles import GENERATOR_EMA
from tdmr1_core.notices import notice
from tdmr1_core.plugins import Extensions, discover
from tdmr1_core.records import IterationReport, Prompt
from tdmr1_core.runs.checkpoint import (
    go_back_to_good,
    latest_checkpoint,
    load_checkpoint,
    mark_good,
    save_checkpoint,
)
from tdmr1_core.runs.continuing import CHECKPOINTS, CONFIG, Continuation, find_continuation, load_run_config
from tdmr1_core.runs.evaluate import Evaluation, Pictures, draw, evaluate
from tdmr1_core.runs.guard import Guard, GuardStopped, held_out_rewards
from tdmr1_core.runs.pictures import save_before_after, save_grid
from tdmr1_core.runs.storage import hold, told_of
from tdmr1_core.runs.tracking import Tracker
from tdmr1_core.stages.prompts import held_out_companion, load_prompts, training_prompts
from tdmr1_core.stages.scoring import build_runner, freeze_rewards
from tdmr1_core.versions import versions
from tdmr1_rewards import patience
from tdmr1_rewards.failures import RewardFailed
from tdmr1_rewards.runner import RewardRunner
from tdmr1_rewards.sources import find

SAMPLES, BEFORE_AFTER = "samples", "before_after.png"
PREVIEW_PROMPTS, PREVIEW_COLUMNS = 6, 8


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
    before: tuple[Evaluation, ...]
    after: tuple[Evaluation, ...]
    before_after: Path | None


class Run:
    """One run folder. Make it with `Run.create` or `Run.resume`, then `execute` it once."""

    def __init__(
        self,
        folder: Path,
        config: RunConfig,
        extensions: Extensions,
        continuation: Continuation | None = None,
        lock: FileLock | None = None,
    ) -> None:
        self.folder = folder
        self.config = config
        self.extensions = extensions
        self._continuation = continuation
        self._lock = lock
        self._guard: Guard | None = None
        self._stop = False
        self._saved_at: int | None = None

    @classmethod
    def create(cls, config: RunConfig, folder: Path, extensions: Extensions | None = None) -> Run:
        """A new run in a folder that is empty or not there yet; its config says what "auto" of rewards stands for.

        Raises Tdmr1Error for a used or unwritable folder, and as the rewards do.
        """
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            if (folder / CONFIG).exists():
                hint = f"continue it with `tdmr1 train --resume {folder}`, or choose another --output"
            else:
                hint = "choose another --output"
            raise Tdmr1Error(f"the run folder {folder} is already used", hint)
        extensions = extensions or discover()
        return cls(folder, freeze_rewards(config, extensions.plugins.rewards), extensions)

    @classmethod
    def resume(cls, folder: Path, extensions: Extensions | None = None) -> Run:
        """Continue a run at its latest intact checkpoint; nobody else may write into its folder from here on.

        Raises Tdmr1Error if there is nothing to continue, or somebody writes into it already.
        """
        load_run_config(folder)  # no lock is put into a folder that is no run's
        lock = hold(folder)
        try:
            found = find_continuation(folder)
            return cls(folder, found.config, extensions or discover(), found, lock)
        except BaseException:
            lock.release()
            raise

    def execute(self, observer: Observer) -> RunResult:
        """Load, evaluate, iterate, save. One Ctrl-C or SIGTERM finishes the iteration and saves; a second leaves."""
        set_threads(self.config.threads)
        rewards = self.config.evaluation.rewards or self._evaluating_rewards()
        trains = self.config.kind == "train"
        # Evaluations and iterations take turns, so the training's own rewards may judge both.
        shared = trains and rewards == self.config.rewards
        self._judge = self._build_judge(rewards) if rewards and not shared else None
        kind = Engine if trains else DistillEngine
        engine = kind.from_config(self.config, run_folder=self.folder, extensions=self.extensions)
        if shared and engine.scoring is not None:
            self._judge = engine.scoring.runner
        try:
            if self._continuation is not None:
                load_checkpoint(engine, self._continuation.checkpoint)
                self._saved_at = engine.iteration_index
            with told_of(self.folder):
                self._open_folder()
                return self._tracked(engine, observer)
        finally:
            engine.close()
            if self._judge is not None:
                self._judge.close()
            if self._guard is not None and self._guard.judge is not None:
                self._guard.judge.close()
            if self._lock is not None:
                self._lock.release()

    def _build_guard(self, engine: Engine) -> Guard | None:
        """Who watches over a training that is evaluated, if anybody is to."""
        settings = self.config.guard
        if self._judge is None or self.config.kind != "train" or not settings.enabled:
            return None
        trained = [reward.name for reward in self.config.rewards]
        judged = self.config.evaluation.rewards or self._evaluating_rewards()
        if not {reward.name for reward in judged} & set(trained):
            notice("evaluations judge none of the trained rewards, so the guard can't see one rise")
        rewards = held_out_rewards(self.config, self.extensions.plugins.rewards, engine.entry.domain)
        judge = self._build_judge(rewards) if rewards else None
        return Guard(settings, trained, judge)

    def _watch(self, engine: Engine, tracker: Tracker, observer: Observer, results: Sequence[Evaluation]) -> None:
        """Let the guard look at an evaluation. Raises GuardStopped for an alarm that is to stop the run."""
        if self._guard is None:
            return
        look = self._guard.look(engine, results)
        tracker.guard(look.step, look.row())
        for alarm in look.alarms:
            notice(f"guard, iteration {look.step}: {alarm}")
        if not self.config.guard.stop:
            return
        self._save(engine, observer)
        checkpoints = self.folder / CHECKPOINTS
        if not look.alarms:
            mark_good(checkpoints, checkpoints / f"step-{look.step:06d}")
            return
        good = go_back_to_good(checkpoints)
        raise GuardStopped(
            f"the guard stopped the run after iteration {look.step}: {look.alarms[0]}",
            f"the last good checkpoint is {good}; look at {self.folder / SAMPLES}, and see docs/faults.md",
        )

    def _tracked(self, engine: Engine, observer: Observer) -> RunResult:
        tracker = Tracker(self.folder, tensorboard=self.config.saving.tensorboard)
        try:
            return self._loop(engine, tracker, observer)
        except RewardFailed:
            # Rewards are asked before an iteration updates anything, so what was learnt until then is whole.
            self._save(engine, observer)
            raise
        finally:
            tracker.close()

    def _evaluating_rewards(self) -> Sequence[RewardConfig]:
        """The trained rewards, but for those that evaluations are to leave in peace."""
        known = self.extensions.plugins.rewards
        return tuple(
            reward
            for reward in self.config.rewards
            if find(known, reward.source or reward.name, reward.python).spec.evaluates
        )

    def _build_judge(self, rewards: Sequence[RewardConfig]) -> RewardRunner:
        device = str(choose_device(self.config.model.device))
        return build_runner(rewards, self.extensions.plugins, combine="weighted_sum", workers=1, device=device)

    def _loop(self, engine: Engine, tracker: Tracker, observer: Observer) -> RunResult:
        saving, evaluation = self.config.saving, self.config.evaluation
        tracker.cut_after(engine.iteration_index or -1)
        self._guard = self._build_guard(engine)
        if self._guard is not None:
            self._guard.recall(self.folder)
        observer.started(engine)
        before: tuple[Evaluation, ...] = ()
        with patience.listening(observer.waiting), self._stopping_cleanly(observer):
            if engine.iteration_index == 0:
                before = self._evaluate(engine, tracker, observer)
                self._preview(engine)
            while engine.iteration_index < self.config.iterations and not self._stop:
                try:
                    report = engine.iteration()
                except patience.Interrupted:  # while a reward was asked, before anything was updated
                    break
                tracker.metrics(report.step, report.metrics)
                observer.iteration(report)
                last = report.step == self.config.iterations or self._stop
                if last or report.step % saving.checkpoint_every == 0:
                    self._save(engine, observer)
                if saving.samples_every and (last or report.step % saving.samples_every == 0):
                    self._preview(engine)
                if evaluation.every and report.step % evaluation.every == 0 and not last:
                    self._evaluate(engine, tracker, observer)
            if self._stop:
                self._save(engine, observer)
            finished = engine.iteration_index >= self.config.iterations
            after = self._evaluate(engine, tracker, observer) if finished else ()
            picture = self._before_after(engine) if finished else None
        return RunResult(self.folder, engine.iteration_index, finished, before, after, picture)

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
            patience.interrupt()
            observer.stopping()

        former = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def _open_folder(self) -> None:
        """Make the folder this run's own, and write down what it is to do."""
        (self.folder / SAMPLES).mkdir(parents=True, exist_ok=True)
        if self._continuation is not None:
            self._continuation.record(self.folder)
            return
        self._lock = hold(self.folder)
        if (self.folder / CONFIG).exists():
            raise Tdmr1Error(f"the run folder {self.folder} is already used", "choose another --output")
        header = {"tdmr1": {"versions": versions(), "config_hash": fingerprint(self.config)}}
        text = yaml.safe_dump(header, sort_keys=False) + yaml.safe_dump(dump(self.config), sort_keys=False)
        (self.folder / CONFIG).write_text(text, encoding="utf-8")

    def _prompt_sets(self, engine: Engine) -> dict[str, list[Prompt]]:
        """The prompts that evaluations use, by name: those of training and the held-out ones."""
        source = training_prompts(self.config, self.extensions)
        held_out = self.config.prompts.evaluate or held_out_companion(source, engine.entry.domain)
        return {name: load_prompts(name, engine.entry.domain) for name in dict.fromkeys((source, held_out))}

    def _evaluate(self, engine: Engine, tracker: Tracker, observer: Observer) -> tuple[Evaluation, ...]:
        """The averaged generator on every prompt set; nothing in a distillation without rewards."""
        if self._judge is None:
            return ()
        settings, results = self.config.evaluation, []
        for name, prompts in self._prompt_sets(engine).items():
            if self._stop:
                break
            observer.evaluating(GENERATOR_EMA, name)
            result = evaluate(
                engine, self._judge, GENERATOR_EMA, name, prompts, images=settings.images, seed=settings.seed
            )
            for reward, value in result.measures.items():
                row = {"role": GENERATOR_EMA, "prompts": name, "n": value.n}
                row |= {f"{reward}/mean": value.mean, f"{reward}/stderr": value.stderr}
                tracker.evaluation(engine.iteration_index, row)
            observer.evaluated(engine.iteration_index, result)
            results.append(result)
        if results and not self._stop:
            self._watch(engine, tracker, observer, results)
        return tuple(results)

    def _preview_pictures(self, engine: Engine) -> Pictures:
        prompts = list(self._prompt_sets(engine).values())[-1]
        step = max(1, len(prompts) // PREVIEW_PROMPTS)
        chosen = prompts[::step][:PREVIEW_PROMPTS]
        return draw(engine, GENERATOR_EMA, chosen, PREVIEW_COLUMNS, self.config.evaluation.seed)

    def _preview(self, engine: Engine) -> None:
        """The same prompts and noises as ever, as the generator draws them now."""
        pictures = self._preview_pictures(engine)
        save_grid(pictures.images, PREVIEW_COLUMNS, self.folder / SAMPLES / f"step-{engine.iteration_index:06d}.png")

    def _before_after(self, engine: Engine) -> Path:
        """The preview with the weights the run started from beside the averaged ones it ended with."""
        after = self._preview_pictures(engine)
        ended = engine.roles.weights(GENERATOR_EMA)
        engine.roles.load(GENERATOR_EMA, engine.start, "the start of the run")
        before = self._preview_pictures(engine)
        engine.roles.load(GENERATOR_EMA, ended, "the end of the run")
        captions = [prompt.text for prompt in after.prompts[::PREVIEW_COLUMNS]]
        shape = (len(captions), PREVIEW_COLUMNS, *after.images.shape[1:])
        path = self.folder / BEFORE_AFTER
        titles = ("before", f"after {engine.iteration_index} iterations")
        save_before_after(before.images.reshape(shape), after.images.reshape(shape), captions, titles, path)
        return path


def load_trained(folder: Path, extensions: Extensions | None = None) -> Engine:
    """An engine with a run's latest weights, for sampling, evaluation and export."""
    config = load_run_config(folder)
    kind = Engine if config.kind == "train" else DistillEngine
    engine = kind.from_config(config, run_folder=folder, extensions=extensions)
    load_checkpoint(engine, latest_checkpoint(folder / CHECKPOINTS))
    return engine


def set_threads(most: int | None) -> None:
    """CPU threads of torch: as many as torch chose (physical cores, or OMP_NUM_THREADS), but at most this many."""
    if most is not None:
        torch.set_num_threads(min(most, torch.get_num_threads()))
