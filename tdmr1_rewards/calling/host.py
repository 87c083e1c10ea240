"""Where a reward runs: in a thread beside the caller, or in a process of its own, in this or another environment."""

from __future__ import annotations

from typing import Protocol

from tdmr1_rewards.api import RewardBatch, RewardResult
from tdmr1_rewards.calling.state import State

STATE_LIMIT = 60.0
"""Seconds that a reward may take to tell or take up its state."""


class Host(Protocol):
    """Holds one reward and makes the calls to it, one at a time. Every failure is a CallFailed."""

    def setup(self, device: str) -> None:
        """Let the reward set itself up, without a time limit: weights may have to be fetched."""

    def call(self, batch: RewardBatch, timeout: float | None) -> RewardResult:
        """The reward's checked answer to a batch with images (N, H, W, 3), which may take `timeout` seconds."""

    def state(self) -> State | None:
        """What the reward remembers; None for one that has no state."""

    def load_state(self, state: State) -> None:
        """Let the reward remember what it told."""

    def close(self) -> None:
        """Close the reward and let go of all that the host holds. Not while a call is going on."""

    def abort(self) -> None:
        """End the call that is going on, from another thread; nothing can be called after that."""
