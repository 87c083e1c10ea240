"""Rewards: what judges images. Importing this needs neither torch nor numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tdmr1_rewards.api import Reward, RewardBatch, RewardContext, RewardExample, RewardResult, RewardSpec
from tdmr1_rewards.errors import Tdmr1Error
from tdmr1_rewards.hookspecs import hookimpl

if TYPE_CHECKING:
    from tdmr1_rewards.options import RewardOptions

__all__ = [
    "Reward",
    "RewardBatch",
    "RewardContext",
    "RewardExample",
    "RewardOptions",
    "RewardResult",
    "RewardSpec",
    "Tdmr1Error",
    "hookimpl",
]


def __getattr__(name: str) -> Any:
    # RewardOptions brings pydantic, which nothing that only lists rewards should wait for.
    if name == "RewardOptions":
        from tdmr1_rewards.options import RewardOptions

        return RewardOptions
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
