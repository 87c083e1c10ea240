"""The rewards of a run: each source is looked up once, and its options are validated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tdmr1_core.config import RewardConfig
from tdmr1_core.errors import Tdmr1Error, raise_together
from tdmr1_rewards.registry import RegisteredReward, RewardRegistry
from tdmr1_rewards.sources.source import check_options, find_reward, freeze_options


@dataclass(frozen=True)
class ResolvedReward:
    """The settings of a reward, with absolute paths and validated options, and what its source refers to."""

    config: RewardConfig
    registered: RegisteredReward


class RewardFinder:
    """Finds each reward once, by its source and the interpreter that it runs in."""

    def __init__(self, registry: RewardRegistry) -> None:
        self._registry = registry
        self._found: dict[tuple[str, Path | None], RegisteredReward] = {}
        self._resolved: list[ResolvedReward] = []

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
        """Rewards with what they refer to. Raises Tdmr1Error as `find_reward` does, and for wrong options."""
        return tuple(map(self._resolve, rewards))

    def _resolve(self, reward: RewardConfig) -> ResolvedReward:
        for resolved in self._resolved:
            if resolved.config == reward:
                return resolved
        registered = self(reward)
        check_options(registered, reward.options, reward.python)
        self._resolved.append(ResolvedReward(reward, registered))
        return self._resolved[-1]


def freeze(rewards: Sequence[ResolvedReward]) -> tuple[RewardConfig, ...]:
    """The settings of rewards, with what options such as "auto" select on this machine (`freeze` of the spec).

    This may load what an option selects, such as an OCR engine. Raises Tdmr1Error if nothing can be selected.
    """
    frozen = []
    for reward in rewards:
        config = reward.config
        options = freeze_options(reward.registered, config.options, config.python)
        frozen.append(config if options == config.options else config.model_copy(update={"options": options}))
    return tuple(frozen)
