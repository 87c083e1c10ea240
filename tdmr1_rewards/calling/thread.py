"""Runs a reward in this process, in the thread of the caller. A thread cannot be ended, so neither can a call."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from tdmr1_rewards.api import ImageFormat, Reward, RewardBatch, RewardResult
from tdmr1_rewards.calling import calls
from tdmr1_rewards.calling.event_loop import EventLoop
from tdmr1_rewards.calling.interrupts import Interrupted
from tdmr1_rewards.calling.process_state import unchanged_process
from tdmr1_rewards.calling.result_checks import CallFailed, as_call_failure, check_result
from tdmr1_rewards.calling.state import State, get_state, has_state, load_state


@dataclass(eq=False)
class ThreadHost:
    """Calls a reward of this process.

    What asynchronous methods of the reward return is awaited, in one event loop for the life of the host. What a call
    changes in the process, such as the current directory, is restored; `on_change` is called once with what it was.
    `owner` names the reward in errors of the process.
    """

    reward: Reward
    image_format: ImageFormat
    on_change: Callable[[str], None] | None = None
    owner: str = "a reward"
    _loop: EventLoop = field(default_factory=EventLoop, init=False)

    @property
    def has_state(self) -> bool:
        """Whether the reward has a state."""
        return has_state(self.reward)

    @property
    def gone(self) -> bool:
        """Always False: the reward is built already."""
        return False

    def start(self) -> None:
        """Do nothing: the reward is built already."""

    def setup(self, device: str) -> str | None:
        """Call the reward's `setup`. Returns its note. Raises CallFailed."""
        note: str | None = self._run(partial(calls.set_up, self.reward, device, self._loop), "cannot be set up")
        return note

    def call(self, batch: RewardBatch) -> RewardResult:
        """The checked result. Raises CallFailed and Interrupted."""
        if self.image_format == "pil":
            batch = replace(batch, images=to_pil(batch.images))
        result: RewardResult = self._run(
            lambda: check_result(calls.score(self.reward, batch, self._loop), batch.image_ids)
        )
        return result

    def state(self) -> State | None:
        """The state of the reward; None if it has none. Raises CallFailed."""
        state: State | None = self._run(partial(get_state, self.reward), "cannot return its state")
        return state

    def load_state(self, state: State) -> None:
        """Restore a state that `state` returned. Raises CallFailed."""
        self._run(partial(load_state, self.reward, state), "cannot restore its state")

    def close(self) -> None:
        """Close the reward. Raises CallFailed."""
        try:
            self._run(partial(calls.close, self.reward, self._loop), "cannot be closed")
        finally:
            self._loop.close()

    def end_call(self, seconds: float | None) -> bool:
        """Returns False: the current call runs on."""
        return False

    def _run(self, function: Callable[[], Any], what: str | None = None) -> Any:
        """Call a function, and restore what it changes in the process. `what` names the step in a CallFailed.

        Environment variables are restored only after a call that scores: `setup` may set some for later calls.
        """
        try:
            with unchanged_process(self._report, owner=self.owner, environment=what is None), forks_ended():
                return function()
        except (CallFailed, Interrupted):
            raise
        except BaseException as error:
            raise as_call_failure(error, what) from error

    def _report(self, changed: str) -> None:
        """Report once what the reward changed."""
        report, self.on_change = self.on_change, None
        if report is not None:
            report(changed)


@contextmanager
def forks_ended() -> Iterator[None]:
    """End a fork of this process, made within the context, that reaches its end: only this process may go on."""
    own = os.getpid()
    try:
        yield
    finally:
        if os.getpid() != own:
            os._exit(0)


def to_pil(images: Any) -> Sequence[Any]:
    """A uint8 array (N, H, W, 3) as N PIL RGB images."""
    from PIL import Image

    return [Image.fromarray(image) for image in images]
