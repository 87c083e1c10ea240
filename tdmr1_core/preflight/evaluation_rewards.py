"""Which rewards judge a run's evaluations, and which of them the guard holds out; torch is not needed to tell."""

from __future__ import annotations

from collections.abc import Sequence

from tdmr1_core.config import RewardConfig, RunConfig
from tdmr1_rewards.api import RewardSpec
from tdmr1_rewards.registry import RewardRegistry
from tdmr1_rewards.sources.availability import availability
from tdmr1_rewards.sources.source import find

FEWEST = 8
"""Images, or groups, that the guard must have measured a number on."""
FREE_JUDGES = {"tiny": ("object_count", "geneval"), "words": ("ocr_match",)}
"""Rewards that cost nothing on the pictures of a domain: no weights to fetch, nobody to ask."""


def evaluation_rewards(config: RunConfig, registry: RewardRegistry) -> Sequence[RewardConfig]:
    """What evaluations are judged by: the trained rewards by default, but for those that they are to leave in peace."""
    return config.evaluation.rewards or tuple(reward for reward in config.rewards if _spec(reward, registry).evaluates)


def held_out_rewards(config: RunConfig, registry: RewardRegistry, domain: str) -> tuple[RewardConfig, ...]:
    """What the guard judges with: the settings' own, else those of evaluations and of the domain that aren't trained.

    Only rewards that can be used here and need no fetching are taken unasked.
    """
    if config.guard.rewards is not None:
        return config.guard.rewards
    trained = {reward.source or reward.name for reward in config.rewards if reward.weight != 0}
    named = {r.name: r for r in config.evaluation.rewards if (r.source or r.name) not in trained}
    for name in FREE_JUDGES.get(domain, ()):
        if name not in trained and name not in named and availability(registry.get(name).spec).usable:
            named[name] = RewardConfig(name=name)
    return tuple(named.values())


def trained_directions(config: RunConfig) -> dict[str, int]:
    """Which way the training moves each reward by its weight: 1 up, -1 down; one without a weight isn't trained."""
    return {reward.name: 1 if reward.weight > 0 else -1 for reward in config.rewards if reward.weight != 0}


def trained_reward_is_evaluated(config: RunConfig, registry: RewardRegistry) -> bool:
    """Whether evaluations judge a reward that is trained."""
    return any(reward.name in trained_directions(config) for reward in evaluation_rewards(config, registry))


def human_rewards(config: RunConfig, registry: RewardRegistry) -> list[str]:
    """The names of trained rewards that ask human_rewards."""
    return [reward.name for reward in config.rewards if not _spec(reward, registry).evaluates]


def _spec(reward: RewardConfig, registry: RewardRegistry) -> RewardSpec:
    return find(registry, reward.source or reward.name, reward.python).spec
