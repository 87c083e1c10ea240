"""Runs the steps of a host in its calling thread, and waits for them in an event loop, with time limits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tdmr1_rewards.calling.calling_thread import CallingThread
from tdmr1_rewards.calling.host import Host
from tdmr1_rewards.calling.result_checks import CallFailed

T = TypeVar("T")
ENDING_LIMIT = 5.0
"""Seconds to wait for the end of a step after its process was killed, and for the end of the calling thread."""


@dataclass(eq=False)
class LimitedSteps:
    """Runs one step after another. All methods run in the event loop, only the steps run in `thread`."""

    host: Host
    thread: CallingThread
    _late: Future[Any] | None = field(default=None, init=False)
    """A step that exceeded its limit and could not be ended."""
    _aborted: bool = field(default=False, init=False)
    """Whether the current step is not waited for any longer."""
    _woken: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    """Set when a step ends, and when the current one is aborted."""

    async def run(self, step: Callable[[], T], seconds: float | None) -> T:
        """The result of a step. Raises CallFailed after `seconds`, and when aborted."""
        if self._late is not None and not await self._finishes(self._late, seconds):
            raise self._given_up(seconds, earlier_call=True)
        self._late = None
        call = self.thread.submit(step)
        if await self._finishes(call, seconds):
            return call.result()
        if not call.cancel():
            self._late = call
        raise self._given_up(seconds, earlier_call=False)

    def abort(self) -> None:
        """End the current step, or stop waiting for it."""
        self._aborted = True
        self._woken.set()

    async def close(self, seconds: float) -> None:
        """Close the host, unless a step hangs, and end the thread, after that step. Raises CallFailed."""
        self._aborted = False
        try:
            if not self._hangs():
                await self.run(self.host.close, seconds)
        finally:
            self.thread.end(0.0 if self._hangs() else ENDING_LIMIT)

    def _hangs(self) -> bool:
        """Whether a step that exceeded its limit is still running."""
        return self._late is not None and not self._late.done()

    async def _finishes(self, call: Future[Any], seconds: float | None) -> bool:
        """Wait for a step, up to `seconds` or until aborted; then end it if that is possible. Whether it finished."""
        loop = asyncio.get_running_loop()

        def wake(_: Future[Any]) -> None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._woken.set)

        call.add_done_callback(wake)
        await self._until(lambda: call.done() or self._aborted, seconds)
        if not call.done() and self.host.end_call(None if self._aborted else seconds):
            await self._until(call.done, ENDING_LIMIT)
        return call.done()

    async def _until(self, condition: Callable[[], bool], seconds: float | None) -> None:
        """Wait until a condition is true, up to `seconds`. It is checked whenever `_woken` is set."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not condition():
                    self._woken.clear()
                    await self._woken.wait()

    def _given_up(self, seconds: float | None, *, earlier_call: bool) -> CallFailed:
        """The failure of a step that was not waited for any longer."""
        if self._aborted:
            return CallFailed("was stopped during a call")
        what = "has not finished an earlier call after {:g} s more" if earlier_call else "did not return within {:g} s"
        hint = "increase `timeout`, or set `isolated: true`, so that a call can be ended"
        return CallFailed(what.format(seconds), hint, values={"seconds": seconds, "earlier_call": earlier_call})
