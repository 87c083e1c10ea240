"""Which settings of two runs differ, and which of the differences make a comparison of their scores unfair."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tdmr1_core.config import RewardConfig, RunConfig
from tdmr1_core.config_loading import dump
from tdmr1_core.runs.checkpoints.changes import find_changes
from tdmr1_core.runs.checkpoints.run_config import Header


@dataclass(frozen=True)
class RunFacts:
    """What decides whether a run can be compared with another one. `images` were sampled by its training."""

    name: str
    config: RunConfig
    header: Header
    images: int


@dataclass(frozen=True)
class SettingDifference:
    """A setting with a dotted name, and its value in each run, in the order of the runs."""

    name: str
    values: tuple[Any, ...]


Aspect = Callable[[RunFacts], Any]
ASPECTS: tuple[tuple[str, str, Aspect], ...] = (
    ("model", "the runs started from other weights", lambda run: _model(run)),
    ("size or sampling of the images", "the images were made in another way", lambda run: _sampling(run.config)),
    (
        "prompts of evaluations",
        "the scores belong to other prompts",
        lambda run: run.header.prompts or (run.config.prompts.train, run.config.prompts.evaluate),
    ),
    (
        "seed or number of the evaluated images",
        "the scores belong to other images",
        lambda run: (
            run.config.evaluation.seed,
            run.config.evaluation.images,
            run.config.evaluation.images_per_prompt,
        ),
    ),
    ("rewards of evaluations", "the scores do not mean the same", lambda run: _evaluation_rewards(run)),
    ("trained rewards", "the runs had other aims", lambda run: _trained_rewards(run)),
    ("training seed", "a part of the difference is chance", lambda run: run.config.seed),
    ("number of training images", "the runs had unequal budgets", lambda run: run.images),
    ("package versions", "numbers may differ for this reason alone", lambda run: run.header.versions),
)
"""What must be equal for a fair comparison: its name, the consequence if it differs, and its value in a run."""


def unfair(first: RunFacts, second: RunFacts) -> list[str]:
    """A sentence for each aspect that makes the comparison of two runs unfair."""
    return [
        f"{first.name} and {second.name} differ in the {name}: {consequence}"
        for name, consequence, value in ASPECTS
        if value(first) != value(second)
    ]


def different_settings(configs: Sequence[RunConfig]) -> list[SettingDifference]:
    """The settings that differ between any two of the runs, without secrets. A missing setting is None."""
    trees = [dump(config) for config in configs]
    names = dict.fromkeys(name for tree in trees[1:] for name in find_changes(trees[0], tree))
    return [SettingDifference(name, tuple(_value(tree, name) for tree in trees)) for name in names]


def _value(tree: Any, name: str) -> Any:
    """The value at a dotted name, whose parts are keys and positions in lists; None if there is none."""
    for part in name.split("."):
        if isinstance(tree, list):
            tree = dict(zip(map(str, range(len(tree))), tree, strict=True))
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree


def _model(run: RunFacts) -> Any:
    """The hashes of the weights that the run began with, or the names of the model if they are not stored."""
    model, header = run.config.model, run.header
    start = (header.lora or {}).get("sha256")
    named = header.content or header.base or (model.name, str(model.path), str(model.teacher))
    return run.config.kind, named, start, model.precision


def _sampling(config: RunConfig) -> Any:
    """What decides how an evaluation samples an image from its noise, except for the weights."""
    rollout = config.rollout
    levels = rollout.sigmas or (rollout.steps, rollout.shift, rollout.dpm_levels)
    return config.model.height, config.model.width, rollout.sampler, levels


def _evaluation_rewards(run: RunFacts) -> Any:
    """What each reward of the evaluations computes. The trained rewards score evaluations that have no own ones."""
    own = run.config.evaluation.rewards
    return _rewards(own or run.config.rewards, run.header, "evaluation." if own else "")


def _rewards(rewards: tuple[RewardConfig, ...], header: Header, place: str) -> dict[str, Any]:
    """Source, options and fingerprint of each reward by name."""
    return {reward.name: (reward.source, reward.options, header.rewards.get(place + reward.name)) for reward in rewards}


def _trained_rewards(run: RunFacts) -> Any:
    """What each trained reward computes, and its weight."""
    rewards = run.config.rewards
    return _rewards(rewards, run.header, ""), {reward.name: reward.weight for reward in rewards}
