"""Runs a reward in a thread of this process. A thread cannot be ended: a call that exceeds its time limit runs on."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, InvalidStateError, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from tdmr1_rewards.api import ImageFormat, Reward, RewardBatch, RewardResult
from tdmr1_rewards.calling.host import STATE_LIMIT
from tdmr1_rewards.calling.interrupts import Interrupted
from tdmr1_rewards.calling.result_checks import CallFailed, as_call_failure, check_result
from tdmr1_rewards.calling.state import State, get_state, has_state, load_state

CLOSING_LIMIT = 30.0
"""Seconds that a reward may take to close."""

_Job = tuple[Callable[[], Any], Future[Any]]


@dataclass(eq=False)
class ThreadHost:
    """Calls a reward from one daemon thread. Neither `close` nor the end of the program waits for the thread."""

    reward: Reward
    image_format: ImageFormat
    _jobs: queue.SimpleQueue[_Job | None] = field(default_factory=queue.SimpleQueue, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)
    _late: Future[Any] | None = field(default=None, init=False)
    _aborted: Future[None] = field(default_factory=Future, init=False)

    def setup(self, device: str) -> None:
        """Call the reward's `setup`, without a time limit. Raises CallFailed."""
        if hasattr(self.reward, "setup"):
            self._run(partial(self.reward.setup, device), None, "cannot be set up")

    def call(self, batch: RewardBatch, timeout: float | None) -> RewardResult:
        """The checked result. Raises CallFailed, also after `timeout` seconds, and Interrupted."""
        if self.image_format == "pil":
            batch = replace(batch, images=to_pil(batch.images))
        return check_result(self._run(partial(self.reward, batch), timeout), batch.image_ids)

    def state(self) -> State | None:
        """The state of the reward; None if it has none. Raises CallFailed."""
        if not has_state(self.reward):
            return None
        state: State | None = self._run(partial(get_state, self.reward), STATE_LIMIT, "cannot return its state")
        return state

    def load_state(self, state: State) -> None:
        """Restore a state that `state` returned. Raises CallFailed."""
        self._run(partial(load_state, self.reward, state), STATE_LIMIT, "cannot restore its state")

    def close(self) -> None:
        """Close the reward, unless a call to it is still running. Raises CallFailed."""
        try:
            if not self._hangs() and hasattr(self.reward, "close"):
                self._run(self.reward.close, CLOSING_LIMIT, "cannot be closed")
        finally:
            self._jobs.put(None)

    def abort(self) -> None:
        """Stop waiting for the current call; the call itself runs on."""
        with suppress(InvalidStateError):
            self._aborted.set_result(None)

    def _run(self, function: Callable[[], Any], timeout: float | None, what: str | None = None) -> Any:
        """Run a function in the thread and return its result. `what` names the step in a CallFailed."""
        if self._thread is None:
            self._thread = threading.Thread(target=_work, args=(self._jobs,), name="reward", daemon=True)
            self._thread.start()
        job: Future[Any] = Future()
        self._jobs.put((function, job))
        wait([job, self._aborted], timeout, FIRST_COMPLETED)
        if not job.done():
            raise self._give_up(job, timeout)
        error = job.exception()
        if isinstance(error, Interrupted):
            raise error
        if error is not None:
            raise as_call_failure(error, what)
        return job.result()

    def _give_up(self, job: Future[Any], timeout: float | None) -> CallFailed:
        """Cancel a job that is not done, or remember that it hangs, and return the failure."""
        waits_for_earlier_call = job.cancel()
        if not waits_for_earlier_call:
            self._late = job
        if self._aborted.done():
            return CallFailed("was stopped during a call")
        hint = "increase `timeout`, or set `isolated: true`, so that a call can be ended"
        values = {"seconds": timeout, "earlier_call": waits_for_earlier_call}
        if waits_for_earlier_call:
            return CallFailed(f"has not finished an earlier call after {timeout:g} s more", hint, values=values)
        return CallFailed(f"did not return within {timeout:g} s", hint, values=values)

    def _hangs(self) -> bool:
        return self._late is not None and not self._late.done()


def to_pil(images: Any) -> Sequence[Any]:
    """A uint8 array (N, H, W, 3) as N PIL RGB images."""
    from PIL import Image

    return [Image.fromarray(image) for image in images]


def _work(jobs: queue.SimpleQueue[_Job | None]) -> None:
    """Run one job after another until a None comes. A job that has started runs to its end."""
    while (item := jobs.get()) is not None:
        function, job = item
        if not job.set_running_or_notify_cancel():
            continue
        try:
            job.set_result(function())
        except BaseException as error:
            job.set_exception(error)
        del item, function, job  # do not keep a batch in memory until the next call
