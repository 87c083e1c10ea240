"""From resolved rewards to a runner that scores with them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from tdmr1_core.preflight.rewards import ResolvedReward
from tdmr1_rewards.scoring.active_reward import ActiveReward
from tdmr1_rewards.scoring.runner import Combine, RewardRunner
from tdmr1_rewards.sources.source import create_reward, reference_for


def build_runner(
    rewards: Sequence[ResolvedReward],
    closing: ExitStack,
    *,
    device: str,
    combine: Combine = "weighted_sum",
    workers: int = 1,
) -> RewardRunner:
    """A runner of these rewards, which `closing` closes.

    Raises Tdmr1Error for wrong options and for a reward that cannot be built.
    """
    runner = RewardRunner([_active_reward(reward) for reward in rewards], combine, workers, device)
    closing.callback(runner.close)
    return runner


def _active_reward(reward: ResolvedReward) -> ActiveReward:
    """The reward built here, or a reference to it for a process of its own."""
    config, registered = reward.config, reward.registered
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
        python=config.python,
    )
