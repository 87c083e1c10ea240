"""Rewards score images. This package can be imported without torch and numpy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tdmr1_rewards.api import Reward, RewardBatch, RewardContext, RewardExample, RewardResult, RewardSpec, RunPreview
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
    "RunPreview",
    "Tdmr1Error",
    "hookimpl",
]


def __getattr__(name: str) -> Any:
    # RewardOptions imports pydantic, which takes time; listing the rewards does not need it.
    if name == "RewardOptions":
        from tdmr1_rewards.options import RewardOptions

        return RewardOptions
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
