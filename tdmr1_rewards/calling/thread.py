"""A reward in a thread of this process. A thread cannot be ended: a call that takes too long is left behind."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, InvalidStateError, wait
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from tdmr1_rewards.api import ImageFormat, Reward, RewardBatch, RewardResult
from tdmr1_rewards.calling.host import STATE_LIMIT
from tdmr1_rewards.calling.interrupts import Interrupted
from tdmr1_rewards.calling.result_checks import CallFailed, as_call_failure, checked
from tdmr1_rewards.calling.state import State, give_state, has_state, take_state

CLOSING_LIMIT = 30.0
"""Seconds that a reward may take to close."""

_Job = tuple[Callable[[], Any], Future[Any]]


class ThreadHost:
    """Calls a reward from one daemon thread, which neither `close` nor the end of the program waits for."""

    def __init__(self, reward: Reward, image_format: ImageFormat) -> None:
        self._reward = reward
        self._image_format = image_format
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._late: Future[Any] | None = None
        self._aborted: Future[None] = Future()

    def setup(self, device: str) -> None:
        """Let the reward set itself up. Raises CallFailed."""
        if hasattr(self._reward, "setup"):
            self._do(partial(self._reward.setup, device), None, "could not be set up")

    def call(self, batch: RewardBatch, timeout: float | None) -> RewardResult:
        """The reward's checked answer. Raises CallFailed, after `timeout` seconds too, and Interrupted."""
        if self._image_format == "pil":
            batch = replace(batch, images=to_pil(batch.images))
        return checked(self._do(partial(self._reward, batch), timeout), batch.image_ids)

    def state(self) -> State | None:
        """What the reward remembers; None for one that has no state. Raises CallFailed."""
        if not has_state(self._reward):
            return None
        state: State | None = self._do(partial(take_state, self._reward), STATE_LIMIT, "could not tell its state")
        return state

    def load_state(self, state: State) -> None:
        """Let the reward remember what it told. Raises CallFailed."""
        self._do(partial(give_state, self._reward, state), STATE_LIMIT, "could not take up its state")

    def close(self) -> None:
        """Close the reward, unless a call to it still hangs. Raises CallFailed."""
        try:
            if not self._hangs() and hasattr(self._reward, "close"):
                self._do(self._reward.close, CLOSING_LIMIT, "could not be closed")
        finally:
            self._jobs.put(None)

    def abort(self) -> None:
        """Leave the call behind that is going on."""
        with suppress(InvalidStateError):
            self._aborted.set_result(None)

    def _do(self, function: Callable[[], Any], timeout: float | None, what: str | None = None) -> Any:
        """The function's result, from the thread."""
        if self._thread is None:
            self._thread = threading.Thread(target=_work, args=(self._jobs,), name="reward", daemon=True)
            self._thread.start()
        job: Future[Any] = Future()
        self._jobs.put((function, job))
        wait([job, self._aborted], timeout, FIRST_COMPLETED)
        if not job.done():
            raise self._gave_up(job, timeout)
        error = job.exception()
        if isinstance(error, Interrupted):
            raise error
        if error is not None:
            raise as_call_failure(error, what)
        return job.result()

    def _gave_up(self, job: Future[Any], timeout: float | None) -> CallFailed:
        earlier = job.cancel()
        if not earlier:
            self._late = job
        if self._aborted.done():
            return CallFailed("was left behind in the middle of a call")
        hint = "give it more time (timeout), or a process that a time-out can end (isolated: true)"
        if earlier:
            return CallFailed(f"still hangs in an earlier call, {timeout:g} s later", hint)
        return CallFailed(f"did not answer within {timeout:g} s", hint)

    def _hangs(self) -> bool:
        return self._late is not None and not self._late.done()


def to_pil(images: Any) -> Sequence[Any]:
    """A uint8 array (N, H, W, 3) as N PIL RGB images."""
    from PIL import Image

    return [Image.fromarray(image) for image in images]


def _work(jobs: queue.SimpleQueue[_Job | None]) -> None:
    """Do one job after another. What nobody waits for any more is done too, if it has begun."""
    while (item := jobs.get()) is not None:
        function, job = item
        if not job.set_running_or_notify_cancel():
            continue
        try:
            job.set_result(function())
        except BaseException as error:
            job.set_exception(error)
        del item, function, job  # nothing is kept until the next call
