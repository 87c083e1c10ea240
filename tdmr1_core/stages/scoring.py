"""Scores decoded images in a thread pool while sampling continues. Rewards receive images, never tensors."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tdmr1_core.errors import RunWarning
from tdmr1_core.prompts.prompt import MANY_UNSCORED
from tdmr1_core.records import Groups, Scores
from tdmr1_rewards.api import RewardBatch, RewardContext
from tdmr1_rewards.calling.interrupts import wait_for
from tdmr1_rewards.calling.state import State
from tdmr1_rewards.errors import one_line, shorten
from tdmr1_rewards.scoring.combine import applicability
from tdmr1_rewards.scoring.failures import RewardFailed
from tdmr1_rewards.scoring.runner import RewardRunner, ScoredBatch, check_any_scored

MAX_REASONS = 3
"""At most this many reasons are named in a message."""


@dataclass(eq=False)
class ScoringStage:
    """Submits complete groups to the rewards as soon as they are decoded, and collects the scores."""

    runner: RewardRunner
    _: KW_ONLY
    run_folder: Path | None
    seed: int
    _waiting: list[np.ndarray] = field(default_factory=list, init=False)
    _submitted: int = field(default=0, init=False)
    _futures: list[Future[ScoredBatch]] = field(default_factory=list, init=False)

    def submit(self, groups: Groups, images: np.ndarray) -> None:
        """Add the next images of the iteration, uint8 (B, height, width, 3), in order. Completed groups are scored."""
        self._waiting.append(images)
        ready = np.concatenate(self._waiting)
        complete = len(ready) - len(ready) % groups.group_size
        if complete:
            rows = range(self._submitted, self._submitted + complete)
            self._futures.append(self.runner.submit(self._batch(groups, rows, ready[:complete])))
            self._submitted += complete
        self._waiting = [ready[complete:]]

    def collect(self) -> Scores:
        """The scores of the iteration. Raises Tdmr1Error if a reward failed, or if failures left no scored image."""
        futures, self._futures, self._waiting, self._submitted = self._futures, [], [], 0
        parts = [wait_for(future) for future in futures]
        check_any_scored(parts)
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
        """The scores of the iteration and the saved states of the rewards. Raises Tdmr1Error as `collect` does."""
        return self.collect(), self.runner.states()

    def score(self, groups: Groups, images: np.ndarray) -> Scores:
        """Score all images of an iteration at once, uint8 (N, height, width, 3)."""
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
            context=RewardContext(self.run_folder, groups.iteration, self.seed),
        )


@dataclass(frozen=True)
class Unscored:
    """An image without a combined reward: the reward without a score (empty if none applies), why, and the prompt."""

    reward: str
    reason: str
    prompt: str


def unscored_images(scores: Scores, groups: Groups) -> list[Unscored]:
    """The images of `groups` that have no combined reward, each with the first reward that gave no score."""
    found = []
    applies = applicability([prompt.metadata for prompt in groups.prompts], scores.per_reward)
    for image in (~scores.valid).nonzero().flatten().tolist():
        group = image // groups.group_size
        without = (name for name, values in scores.per_reward.items() if applies[name][group] and values[image] is None)
        reward = next(without, "")
        reason = _reason(scores.details[image].get(reward, {})) if reward else "no reward applies to the prompt"
        found.append(Unscored(reward, reason, groups.prompts[group].text))
    return found


def _reason(details: Mapping[str, Any]) -> str:
    """Why a reward gave no score, according to its details."""
    reason = details.get("reason", details.get("failed"))
    return one_line(str(reason)) if reason else "it returned None without a reason"


def describe_unscored(unscored: Sequence[Unscored]) -> str:
    """The most frequent reasons, each with its number of images and an example, as one line."""
    counts = Counter((each.reward, each.reason) for each in unscored)
    examples = {(each.reward, each.reason): each.prompt for each in reversed(unscored)}
    parts = []
    for (reward, reason), count in counts.most_common(MAX_REASONS):
        who = f"reward {reward!r}: " if reward else ""
        images = "1 image" if count == 1 else f"{count} images"
        parts.append(f"{who}{reason} ({images}, such as for {shorten(examples[reward, reason])!r})")
    return "; ".join(parts)


def check_scored(unscored: Sequence[Unscored], images: int, iteration: int) -> RunWarning | None:
    """A warning if MANY_UNSCORED of the `images` of an iteration (from 1) or more have no score.

    Raises RewardFailed if this is the first iteration and no image has a score.
    """
    if len(unscored) < MANY_UNSCORED * images or not unscored:
        return None
    described = describe_unscored(unscored)
    if iteration == 1 and len(unscored) == images:
        raise RewardFailed(
            f"no image of the first iteration has a score: {described}",
            "use prompts that the reward can score, or correct the reward",
            code="nothing-scored",
            values={"images": images, "reasons": list(dict.fromkeys(each.reason for each in unscored))},
        )
    return RunWarning(
        f"{len(unscored)} of {images} images of iteration {iteration} have no score: {described}",
        code="images-unscored",
        values={"images": images, "unscored": len(unscored), "iteration": iteration},
    )


def with_metrics_only(scores: Scores) -> Scores:
    """The scores with only those details that are metrics. They are small enough to be sent to other processes."""
    kept = [
        {name: {"metrics": part["metrics"]} for name, part in detail.items() if "metrics" in part}
        for detail in scores.details
    ]
    return replace(scores, details=kept)


def reward_metrics(scores: Scores) -> dict[str, float]:
    """Mean and standard deviation of the combined reward and of each reward, over the images that have a score.

    Values that overflow float64 are omitted.
    """
    metrics = {}
    if bool(scores.valid.any()):
        valid = scores.total[scores.valid]
        metrics = {"reward/mean": valid.mean().item(), "reward/std": valid.std(correction=0).item()}
    for name, values in scores.per_reward.items():
        scored: Tensor = torch.tensor([value for value in values if value is not None], dtype=torch.float64)
        if len(scored):
            metrics[f"reward/{name}/mean"] = scored.mean().item()
            metrics[f"reward/{name}/std"] = scored.std(correction=0).item()
        metrics |= {f"reward/{name}/{key}": value for key, value in _reported_metrics(scores.details, name).items()}
        metrics[f"reward/{name}/unjudged"] = float(scores.unjudged.get(name, 0))
        metrics[f"reward/{name}/failed"] = float(scores.failed.get(name, 0))
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _reported_metrics(details: Sequence[Mapping[str, Any]], name: str) -> dict[str, float]:
    """The mean of each metric that a reward reported in its details, over the images with that metric."""
    reported = [detail[name]["metrics"] for detail in details if "metrics" in detail.get(name, {})]
    keys = dict.fromkeys(key for metrics in reported for key in metrics)
    values = {key: [float(metrics[key]) for metrics in reported if key in metrics] for key in keys}
    return {key: sum(numbers) / len(numbers) for key, numbers in values.items()}
