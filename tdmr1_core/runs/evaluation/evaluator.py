"""The evaluations of a run: the averaged generator on every prompt set, and the guard that reads the results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from tdmr1_core.build.rewards import build_runner
from tdmr1_core.engine import Engine
from tdmr1_core.errors import warn
from tdmr1_core.models.roles import GENERATOR_EMA
from tdmr1_core.preflight.group_sizes import check_evaluation_groups
from tdmr1_core.preflight.resolved import ResolvedRun
from tdmr1_core.preflight.rewards import trained_directions
from tdmr1_core.prompts.sets import short_names
from tdmr1_core.runs.checkpoints.fingerprints import Fingerprints, subject_fingerprint
from tdmr1_core.runs.evaluation.evaluate import Evaluation, evaluate
from tdmr1_core.runs.evaluation.guard import Guard, GuardReading
from tdmr1_core.runs.observer import Observer
from tdmr1_rewards.scoring.runner import RewardRunner


@dataclass(eq=False)
class Evaluator:
    """Evaluates a run. `guard` is None where there is nothing to guard."""

    resolved: ResolvedRun
    own_runner: RewardRunner | None
    """Rewards that only evaluations use; None if the trained rewards score evaluations, or if nothing does."""
    guard: Guard | None
    subject: str = ""
    """The `subject_fingerprint` of its prompts, noise and rewards."""

    def evaluate(self, engine: Engine, observer: Observer, stop: Callable[[], bool]) -> list[Evaluation]:
        """One evaluation for each prompt set; fewer once `stop()` is true. Rewards keep no memory of it.

        All processes call this together, and `stop` returns the same in all of them.
        """
        results: list[Evaluation] = []
        settings = self.resolved.config.evaluation
        runner = self.runner(engine)
        names = short_names([prompt_set.name for prompt_set in self.resolved.evaluation_prompts])
        for prompt_set in self.resolved.evaluation_prompts:
            if runner is None or stop():
                break
            observer.evaluating(GENERATOR_EMA, names[prompt_set.name])
            with runner.preserving_states():
                result = evaluate(
                    engine,
                    runner,
                    GENERATOR_EMA,
                    names[prompt_set.name],
                    prompt_set.prompts,
                    images=settings.images,
                    images_per_prompt=settings.images_per_prompt,
                    seed=settings.seed,
                )
            observer.evaluated(engine.iteration_index, result)
            results.append(result)
        return results

    def runner(self, engine: Engine) -> RewardRunner | None:
        """The rewards that score evaluations; None if nothing does, such as in a distillation without rewards."""
        if self.own_runner is None and self.resolved.evaluation_rewards and engine.scoring is not None:
            return engine.scoring.runner
        return self.own_runner

    def check_groups(self, engine: Engine) -> None:
        """Raise Tdmr1Error if a reward on a server compares images, but evaluations sample one image for a prompt.

        The rewards on servers are set up, because only the servers know that. For other rewards, `resolve_run` has
        checked it.
        """
        runners = (self.runner(engine), self.guard.held_out_rewards if self.guard else None)
        scored, held_out = ({} if runner is None else runner.set_up_served() for runner in runners)
        if scored or held_out:
            prompt_sets = self.resolved.evaluation_prompts
            check_evaluation_groups(self.resolved.config, prompt_sets, scored, held_out)

    def read_guard(self, engine: Engine, results: Sequence[Evaluation]) -> GuardReading | None:
        """The guard's reading of an evaluation, with a warning for each alarm.

        None without a guard, and in all processes except the first. All of them call this together.
        """
        reading = self.guard.read(engine, results) if self.guard is not None else None
        if reading is None:
            return None
        for alarm in reading.alarms:
            warn(
                f"guard alarm in iteration {reading.step}: {alarm}", code="guard-alarm", step=reading.step, alarm=alarm
            )
        return reading


def build_evaluator(
    resolved: ResolvedRun, fingerprints: Fingerprints, device: torch.device, closing: ExitStack, *, warns: bool = True
) -> Evaluator:
    """The evaluator of a run with the rewards that the engine does not have, which `closing` closes.

    `warns` is whether this process reports a guard that cannot see hacking.
    """
    config, rewards = resolved.config, resolved.evaluation_rewards
    trained = trained_directions(config)
    guarded = bool(rewards) and config.kind == "train" and config.guard.enabled
    if warns and guarded and trained.keys().isdisjoint(reward.config.name for reward in rewards):
        warn("evaluations score none of the trained rewards, so the guard cannot see one rise", code="guard-limited")
    subject = subject_fingerprint(config, fingerprints)
    own = () if config.kind == "train" and rewards == resolved.rewards else rewards
    runner = build_runner(own, closing, device=str(device)) if own else None
    if not guarded:
        return Evaluator(resolved, runner, None, subject)
    others = resolved.held_out_rewards
    held_out = build_runner(others, closing, device=str(device)) if others else None
    return Evaluator(resolved, runner, Guard(config.guard, trained, held_out, subject), subject)
