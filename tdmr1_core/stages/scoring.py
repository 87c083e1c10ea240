"""Finished images to rewards, in a pool, while sampling goes on. Rewards see pictures, never tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tdmr1_core.config import RewardConfig, RunConfig
from tdmr1_core.records import Groups, Scores
from tdmr1_rewards.api import RewardBatch, RewardContext
from tdmr1_rewards.calling.state import State
from tdmr1_rewards.registry import Plugins, RewardRegistry
from tdmr1_rewards.scoring.active_reward import ActiveReward
from tdmr1_rewards.scoring.runner import Combine, RewardRunner, ScoredBatch, check_left
from tdmr1_rewards.sources.source import create_reward, find_reward, freeze_options, reference_for


def build_runner(
    rewards: Sequence[RewardConfig], plugins: Plugins, *, combine: Combine, workers: int, device: str
) -> RewardRunner:
    """The run's rewards, ready to score. Raises Tdmr1Error for an unknown reward or wrong options."""
    return RewardRunner([_active(plugins.rewards, reward) for reward in rewards], combine, workers, device)


def freeze_rewards(config: RunConfig, registry: RewardRegistry) -> RunConfig:
    """The config as a run keeps it: options of rewards that mean "whatever is here" say what that is.

    For a reward in another environment that is seen there. Raises Tdmr1Error as the reward does.
    """

    def frozen(rewards: tuple[RewardConfig, ...]) -> tuple[RewardConfig, ...]:
        return tuple(_frozen(reward, registry) for reward in rewards)

    judges = config.evaluation.model_copy(update={"rewards": frozen(config.evaluation.rewards)})
    held_out = None if config.guard.rewards is None else frozen(config.guard.rewards)
    guard = config.guard.model_copy(update={"rewards": held_out})
    return config.model_copy(update={"rewards": frozen(config.rewards), "evaluation": judges, "guard": guard})


def _frozen(reward: RewardConfig, registry: RewardRegistry) -> RewardConfig:
    registered = find_reward(registry, reward.source or reward.name, reward.python)
    options = freeze_options(registered, reward.options, reward.python)
    return reward if options == reward.options else reward.model_copy(update={"options": options})


def _active(registry: RewardRegistry, config: RewardConfig) -> ActiveReward:
    """A reward as its config has it: built here, or by name in a process of its own."""
    registered = find_reward(registry, config.source or config.name, config.python)
    isolated = config.isolated or config.python is not None
    return ActiveReward(
        name=config.name,
        weight=config.weight,
        spec=registered.spec,
        reward=reference_for(registered, config.options, config.python)
        if isolated
        else create_reward(registered, config.options),
        provenance=registered.provenance,
        batch_size=config.batch_size,
        timeout=config.timeout,
        retries=config.retries,
        on_failure=config.on_failure,
        device=config.device,
        python=config.python.absolute() if config.python else None,
    )


class ScoringStage:
    """Hands whole groups to the rewards as soon as they are decoded, and collects the answers."""

    def __init__(self, runner: RewardRunner, *, run_folder: Path | None, seed: int) -> None:
        self.runner = runner
        self._run_folder = run_folder
        self._seed = seed
        self._waiting: list[np.ndarray] = []
        self._done = 0
        self._futures: list[Future[ScoredBatch]] = []

    def submit(self, groups: Groups, images: np.ndarray) -> None:
        """The next images of the iteration, in order; every group they complete starts to be scored."""
        self._waiting.append(images)
        ready = np.concatenate(self._waiting)
        whole = len(ready) - len(ready) % groups.group_size
        if whole:
            rows = range(self._done, self._done + whole)
            self._futures.append(self.runner.submit(self._batch(groups, rows, ready[:whole])))
            self._done += whole
        self._waiting = [ready[whole:]]

    def collect(self) -> Scores:
        """All answers of the iteration. Raises Tdmr1Error if a reward failed, or failures have left nothing."""
        futures, self._futures, self._waiting, self._done = self._futures, [], [], 0
        parts = [future.result() for future in futures]
        check_left(parts)
        total = [score for part in parts for score in part.total]
        names = parts[0].per_reward
        return Scores(
            total=torch.tensor([0.0 if score is None else score for score in total], dtype=torch.float64),
            valid=torch.tensor([score is not None for score in total]),
            per_reward={name: [score for part in parts for score in part.per_reward[name]] for name in names},
            details=[detail for part in parts for detail in part.details],
            failed={name: sum(part.failed[name] for part in parts) for name in names},
            unjudged={name: sum(part.unjudged[name] for part in parts) for name in names},
        )

    def collect_with_states(self) -> tuple[Scores, dict[str, State]]:
        """All answers of the iteration, and what rewards remember of them. Raises Tdmr1Error as `collect` does."""
        return self.collect(), self.runner.states()

    def score(self, groups: Groups, images: np.ndarray) -> Scores:
        """Score all images (N, height, width, 3) of an iteration at once."""
        self.submit(groups, images)
        return self.collect()

    def _batch(self, groups: Groups, rows: range, images: np.ndarray) -> RewardBatch:
        prompts = [groups.prompts[row // groups.group_size] for row in rows]
        image_ids = [groups.image_ids[row] for row in rows]
        return RewardBatch(
            images=images,
            prompts=[prompt.text for prompt in prompts],
            metadata=[prompt.metadata for prompt in prompts],
            group_ids=[image // groups.group_size for image in image_ids],
            image_ids=image_ids,
            context=RewardContext(self._run_folder, groups.iteration, self._seed),
        )


def reward_metrics(scores: Scores) -> dict[str, float]:
    """Means and deviations of the combined reward and of each one, over the images that were judged.

    One that float64 can't hold is left out.
    """
    metrics = {}
    if bool(scores.valid.any()):
        judged = scores.total[scores.valid]
        metrics = {"reward/mean": judged.mean().item(), "reward/std": judged.std(correction=0).item()}
    for name, answers in scores.per_reward.items():
        given: Tensor = torch.tensor([answer for answer in answers if answer is not None], dtype=torch.float64)
        if len(given):
            metrics[f"reward/{name}/mean"] = given.mean().item()
            metrics[f"reward/{name}/std"] = given.std(correction=0).item()
        metrics |= {f"reward/{name}/{key}": value for key, value in _told_metrics(scores.details, name).items()}
        metrics[f"reward/{name}/unjudged"] = float(scores.unjudged.get(name, 0))
        metrics[f"reward/{name}/failed"] = float(scores.failed.get(name, 0))
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _told_metrics(details: Sequence[Mapping[str, Any]], name: str) -> dict[str, float]:
    """The means of what a reward told under "metrics", over the images that it told it of."""
    told = [detail[name]["metrics"] for detail in details if "metrics" in detail.get(name, {})]
    keys = dict.fromkeys(key for numbers in told for key in numbers)
    given = {key: [float(numbers[key]) for numbers in told if key in numbers] for key in keys}
    return {key: sum(values) / len(values) for key, values in given.items()}
