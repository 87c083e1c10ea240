"""The rewards of a run: each source is looked up once, and its options are validated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tdmr1_core.config import RewardConfig
from tdmr1_core.errors import Tdmr1Error, raise_together
from tdmr1_rewards.registry import RegisteredReward, RewardRegistry
from tdmr1_rewards.sources.source import find_reward, resolve_options


@dataclass(frozen=True)
class ResolvedReward:
    """The settings of a reward, with frozen options and absolute paths, and what its source refers to."""

    config: RewardConfig
    registered: RegisteredReward
    chosen_options: Mapping[str, Any] = field(default_factory=dict)
    """Options that were chosen for this machine, by name."""


class RewardFinder:
    """Finds each reward once, by its source and the interpreter that it runs in."""

    def __init__(self, registry: RewardRegistry) -> None:
        self._registry = registry
        self._found: dict[tuple[str, Path | None], RegisteredReward] = {}
        self._resolved: list[tuple[RewardConfig, ResolvedReward]] = []

    def find(self, source: str, python: Path | None = None) -> RegisteredReward:
        """What a source refers to. Raises Tdmr1Error as `find_reward` does."""
        if (source, python) not in self._found:
            self._found[source, python] = find_reward(self._registry, source, python)
        return self._found[source, python]

    def __call__(self, reward: RewardConfig) -> RegisteredReward:
        """What the settings of a reward refer to. Raises Tdmr1Error as `find_reward` does."""
        return self.find(reward.source or reward.name, reward.python)

    def check(self, rewards: Sequence[RewardConfig]) -> None:
        """Find all rewards. Raises one Tdmr1Error for all that cannot be found."""
        errors = []
        for reward in rewards:
            try:
                self(reward)
            except Tdmr1Error as error:
                errors.append(error)
        if errors:
            raise_together(errors)

    def resolve(self, rewards: Sequence[RewardConfig]) -> tuple[ResolvedReward, ...]:
        """Rewards with what they refer to. Options that mean "what is installed here" get that value (`freeze`).

        Raises Tdmr1Error as `find_reward` does, and for wrong options.
        """
        return tuple(map(self._resolve, rewards))

    def _resolve(self, reward: RewardConfig) -> ResolvedReward:
        for given, resolved in self._resolved:
            if reward in (given, resolved.config):
                return resolved
        registered = self(reward)
        options = resolve_options(registered, reward.options, reward.python)
        config = reward if options == reward.options else reward.model_copy(update={"options": options})
        chosen = {name: value for name, value in options.items() if reward.options.get(name) != value}
        self._resolved.append((reward, ResolvedReward(config, registered, chosen)))
        return self._resolved[-1][1]
