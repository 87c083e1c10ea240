"""The evaluations of a run: the averaged generator on every prompt set, and the guard that reads the results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch

from tdmr1_core.build.rewards import build_runner
from tdmr1_core.engine import Engine
from tdmr1_core.errors import warn
from tdmr1_core.models.roles import GENERATOR_EMA
from tdmr1_core.preflight.evaluation_rewards import trained_directions, trained_reward_is_evaluated
from tdmr1_core.preflight.resolved import ResolvedRun
from tdmr1_core.preflight.rewards import ResolvedReward
from tdmr1_core.runs.checkpoints.fingerprints import Fingerprints
from tdmr1_core.runs.evaluation.evaluate import Evaluation, evaluate
from tdmr1_core.runs.evaluation.guard import Guard, GuardReading, subject_fingerprint
from tdmr1_core.runs.observer import Observer
from tdmr1_rewards.scoring.runner import RewardRunner


class Evaluator:
    """Evaluates a run. `guard` is None where there is nothing to guard."""

    def __init__(self, resolved: ResolvedRun, runner: RewardRunner | None, guard: Guard | None = None) -> None:
        self._resolved = resolved
        self._runner = runner
        self.guard = guard

    @property
    def is_active(self) -> bool:
        """Whether the run is evaluated at all: a distillation without rewards is not."""
        return self._runner is not None

    def is_due(self, step: int) -> bool:
        """Whether an evaluation follows iteration `step`; 0 is the start of the run."""
        config = self._resolved.config
        every = config.evaluation.every
        return step in (0, config.iterations) or (every > 0 and step % every == 0)

    def evaluate(self, engine: Engine, observer: Observer, stop: Callable[[], bool]) -> list[Evaluation]:
        """One evaluation for each prompt set; fewer once `stop()` is true. Rewards keep no memory of it."""
        results: list[Evaluation] = []
        settings = self._resolved.config.evaluation
        for prompt_set in self._resolved.evaluation_prompts:
            if self._runner is None or stop():
                break
            observer.evaluating(GENERATOR_EMA, prompt_set.name)
            with self._runner.preserving_states():
                result = evaluate(
                    engine,
                    self._runner,
                    GENERATOR_EMA,
                    prompt_set.name,
                    prompt_set.prompts,
                    images=settings.images,
                    seed=settings.seed,
                )
            observer.evaluated(engine.iteration_index, result)
            results.append(result)
        return results

    def read_guard(self, engine: Engine, results: Sequence[Evaluation]) -> GuardReading | None:
        """The guard's reading of an evaluation, with a warning for each alarm; None without a guard."""
        if self.guard is None:
            return None
        reading = self.guard.read(engine, results)
        for alarm in reading.alarms:
            warn(
                f"guard alarm in iteration {reading.step}: {alarm}", code="guard-alarm", step=reading.step, alarm=alarm
            )
        return reading


def build_evaluation_runner(resolved: ResolvedRun, device: torch.device, closing: ExitStack) -> RewardRunner | None:
    """The rewards of evaluations, closed by `closing`; None where the engine's own rewards score them, or none do."""
    rewards = resolved.evaluation_rewards
    shared = resolved.config.kind == "train" and rewards == resolved.rewards
    return None if shared else _build_runner(rewards, device, closing)


def build_guard(
    resolved: ResolvedRun, fingerprints: Fingerprints, device: torch.device, closing: ExitStack
) -> Guard | None:
    """The guard of a training that is evaluated, unless it is switched off; `closing` closes its rewards."""
    config = resolved.config
    evaluated = [reward.config for reward in resolved.evaluation_rewards]
    if not evaluated or config.kind != "train" or not config.guard.enabled:
        return None
    if not trained_reward_is_evaluated(config, evaluated):
        warn("evaluations score none of the trained rewards, so the guard cannot see one rise", code="guard-limited")
    held_out = _build_runner(resolved.held_out_rewards, device, closing)
    subject = subject_fingerprint(config, fingerprints)
    return Guard(config.guard, trained_directions(config), held_out, subject)


def _build_runner(rewards: Sequence[ResolvedReward], device: torch.device, closing: ExitStack) -> RewardRunner | None:
    if not rewards:
        return None
    runner = build_runner(rewards, combine="weighted_sum", workers=1, device=str(device))
    closing.callback(runner.close)
    return runner
