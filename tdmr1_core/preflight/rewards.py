"""The rewards of a run: which are trained, which score evaluations, and which only the guard uses.

Each source is looked up once, and its options are validated. Torch is not needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tdmr1_core.config import RewardConfig, RunConfig
from tdmr1_core.errors import Tdmr1Error, raise_together
from tdmr1_rewards.api import RewardSpec
from tdmr1_rewards.calling.reference import check_options
from tdmr1_rewards.registry import RegisteredReward, RewardRegistry, availability
from tdmr1_rewards.sources.source import find_reward

MIN_GUARD_SAMPLES = 8
"""Images, or groups, that a metric of the guard must be measured on."""
DOMAIN_REWARDS = {"tiny": ("object_count", "geneval"), "words": ("ocr_match",)}
"""Rewards that cost nothing on the images of a domain: no weights to download and no human feedback."""


@dataclass(frozen=True)
class ResolvedReward:
    """The settings of a reward, with absolute paths, and what its source refers to.

    `options` are its validated options, an instance of its RewardOptions class; None without such a class, and for a
    reward of another environment.
    """

    config: RewardConfig
    registered: RegisteredReward
    options: Any


@dataclass(frozen=True)
class RunRewards:
    """The trained rewards of a run, those that score its evaluations, and those that only the guard uses."""

    trained: tuple[ResolvedReward, ...]
    evaluation: tuple[ResolvedReward, ...]
    held_out: tuple[ResolvedReward, ...]


@dataclass
class RewardFinder:
    """Finds each reward once, by its source and the interpreter that it runs in."""

    registry: RewardRegistry
    _found: dict[tuple[str, Path | None], RegisteredReward] = field(default_factory=dict, init=False)

    def find(self, source: str, python: Path | None = None) -> RegisteredReward:
        """What a source refers to. Raises Tdmr1Error as `find_reward` does."""
        if (source, python) not in self._found:
            self._found[source, python] = find_reward(self.registry, source, python)
        return self._found[source, python]

    def resolve(self, rewards: Sequence[RewardConfig]) -> tuple[ResolvedReward, ...]:
        """Rewards with what they refer to. Raises Tdmr1Error as `find_reward` does, and for wrong options."""
        found = [(reward, self._find(reward)) for reward in rewards]
        return tuple(
            ResolvedReward(reward, registered, check_options(registered, reward.options, reward.python))
            for reward, registered in found
        )

    def resolve_run(self, config: RunConfig, domain: str) -> RunRewards:
        """All rewards of a run. Raises one Tdmr1Error for all that cannot be found, and one for wrong options."""
        self._check((*config.rewards, *config.evaluation.rewards, *(config.guard.rewards or ())))
        evaluated, held_out = self.evaluation_rewards(config), self.held_out_rewards(config, domain)
        resolved = self.resolve((*config.rewards, *evaluated, *held_out))
        first, second = len(config.rewards), len(config.rewards) + len(evaluated)
        return RunRewards(resolved[:first], resolved[first:second], resolved[second:])

    def held_out_rewards(self, config: RunConfig, domain: str) -> tuple[RewardConfig, ...]:
        """The guard's rewards: those of the settings, else those of evaluations and the domain that are not trained.

        Rewards of the domain are used only where they can run without a download.
        """
        if config.guard.rewards is not None:
            return config.guard.rewards
        trained = {reward.source or reward.name for reward in config.rewards if reward.weight != 0}
        chosen = {r.name: r for r in config.evaluation.rewards if (r.source or r.name) not in trained}
        for name in DOMAIN_REWARDS.get(domain, ()):
            if name not in trained and name not in chosen and availability(self.find(name).spec).usable:
                chosen[name] = RewardConfig(name=name)
        return tuple(chosen.values())

    def evaluation_rewards(self, config: RunConfig) -> Sequence[RewardConfig]:
        """The rewards that score evaluations: those of the settings, else those trained that need no human feedback."""
        return config.evaluation.rewards or tuple(
            reward for reward in config.rewards if self._find(reward).spec.evaluates
        )

    def _find(self, reward: RewardConfig) -> RegisteredReward:
        return self.find(reward.source or reward.name, reward.python)

    def _check(self, rewards: Sequence[RewardConfig]) -> None:
        """Find all rewards. Raises one Tdmr1Error for all that cannot be found."""
        errors = []
        for reward in rewards:
            try:
                self._find(reward)
            except Tdmr1Error as error:
                errors.append(error)
        if errors:
            raise_together(errors)


def specs_of(rewards: Sequence[ResolvedReward]) -> dict[str, RewardSpec]:
    """The specs of rewards by their names in the run. For a reward on a server, it is not that of the server."""
    return {reward.config.name: reward.registered.spec for reward in rewards}


def trained_directions(config: RunConfig) -> dict[str, int]:
    """The direction in which training moves each reward: 1 up, -1 down. Rewards with weight 0 are not trained."""
    return {reward.name: 1 if reward.weight > 0 else -1 for reward in config.rewards if reward.weight != 0}
