"""Which rewards score the evaluations of a run, and which of them the guard holds out. Torch is not needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from tdmr1_core.config import RewardConfig, RunConfig
from tdmr1_rewards.registry import RegisteredReward
from tdmr1_rewards.sources.availability import availability

MIN_GUARD_SAMPLES = 8
"""Images, or groups, that a metric of the guard must be measured on."""
DOMAIN_REWARDS = {"tiny": ("object_count", "geneval"), "words": ("ocr_match",)}
"""Rewards that cost nothing on the images of a domain: no weights to download, and nobody to ask."""


def evaluation_rewards(config: RunConfig, find: Callable[[RewardConfig], RegisteredReward]) -> Sequence[RewardConfig]:
    """The rewards that score evaluations: those of the settings, else the trained rewards, except human ones."""
    return config.evaluation.rewards or tuple(reward for reward in config.rewards if find(reward).spec.evaluates)


def held_out_rewards(
    config: RunConfig, domain: str, find: Callable[[str], RegisteredReward]
) -> tuple[RewardConfig, ...]:
    """The rewards of the guard: those of the settings, else those of evaluations and the domain that are not trained.

    Rewards of the domain are used only where they can run without a download.
    """
    if config.guard.rewards is not None:
        return config.guard.rewards
    trained = {reward.source or reward.name for reward in config.rewards if reward.weight != 0}
    chosen = {r.name: r for r in config.evaluation.rewards if (r.source or r.name) not in trained}
    for name in DOMAIN_REWARDS.get(domain, ()):
        if name not in trained and name not in chosen and availability(find(name).spec).usable:
            chosen[name] = RewardConfig(name=name)
    return tuple(chosen.values())


def trained_directions(config: RunConfig) -> dict[str, int]:
    """The direction in which training moves each reward: 1 up, -1 down. Rewards with weight 0 are not trained."""
    return {reward.name: 1 if reward.weight > 0 else -1 for reward in config.rewards if reward.weight != 0}


def trained_reward_is_evaluated(config: RunConfig, evaluated: Iterable[RewardConfig]) -> bool:
    """Whether evaluations score a reward that is trained."""
    return any(reward.name in trained_directions(config) for reward in evaluated)
