"""The interface of a host. A host runs one reward: in a thread of this process, or in another process."""

from __future__ import annotations

from typing import Protocol

from tdmr1_rewards.api import RewardBatch, RewardResult
from tdmr1_rewards.calling.state import State

STATE_LIMIT = 60.0
"""Seconds that a reward may take to return or restore its state."""


class Host(Protocol):
    """Holds one reward and calls it, one call at a time. Every method raises CallFailed if the reward fails."""

    def setup(self, device: str) -> None:
        """Call the reward's `setup`. It has no time limit, because weights may have to be downloaded."""

    def call(self, batch: RewardBatch, timeout: float | None) -> RewardResult:
        """The checked result for a batch with images (N, H, W, 3); the call may take `timeout` seconds."""

    def state(self) -> State | None:
        """The state of the reward; None if it has none."""

    def load_state(self, state: State) -> None:
        """Restore a state that `state` returned."""

    def close(self) -> None:
        """Close the reward and release all resources. Must not be called during a call."""

    def abort(self) -> None:
        """End the current call, from another thread. The host cannot be used afterwards."""
