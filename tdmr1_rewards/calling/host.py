"""The interface of a host. A host runs one reward: in this process, or in another process.

All methods except `end_call` run in the calling thread of the reward, one at a time, and know no time limits.
"""

from __future__ import annotations

from typing import Protocol

from tdmr1_rewards.api import RewardBatch, RewardResult
from tdmr1_rewards.calling.state import State


class Host(Protocol):
    """Holds one reward and calls it. Every method raises CallFailed if the reward fails."""

    @property
    def has_state(self) -> bool:
        """Whether the reward may have a state."""

    @property
    def gone(self) -> bool:
        """Whether the reward needs a call of `start`: its process has not started, or has ended."""

    def start(self) -> None:
        """Start the process and build the reward. Raises Tdmr1Error if this fails."""

    def setup(self, device: str) -> str | None:
        """Call the reward's `setup`. Returns a sentence for users about how the reward is used, if there is one."""

    def call(self, batch: RewardBatch) -> RewardResult:
        """The checked result for a batch with images (N, H, W, 3)."""

    def state(self) -> State | None:
        """The state of the reward; None if it has none."""

    def load_state(self, state: State) -> None:
        """Restore a state that `state` returned."""

    def close(self) -> None:
        """Close the reward and release all resources."""

    def end_call(self, seconds: float | None) -> bool:
        """End the current call, from another thread: it took longer than `seconds`, or (None) than `close` waits.

        Returns False if the host cannot do this; then the call runs on.
        """
