"""The event loop of a reward with asynchronous functions. Standard library only, because workers use it.

A reward keeps one loop for its whole life: locks, semaphores and connections of asyncio belong to the loop that used
them first.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from tdmr1_rewards.calling.torch_modules import without_gradients

CLOSING_LIMIT = 5.0
"""Seconds that the tasks of a closed loop may take to end."""


@dataclass(eq=False)
class EventLoop:
    """An event loop in a thread of its own. The thread starts with the first awaitable answer and ends with `close`.

    The calling thread may run a loop already, such as that of a notebook. Gradients of torch are disabled in the loop
    if they are disabled in the calling thread. The thread is a daemon: the end of the program does not wait for it.
    """

    _loop: asyncio.AbstractEventLoop | None = field(default=None, init=False)
    _finish: Callable[[], Any] | None = field(default=None, init=False)

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function in this thread. If its answer is awaitable, await it in the loop."""
        return self.result(function(*args, **kwargs))

    def result(self, answer: Any) -> Any:
        """The answer itself, or what it becomes when it is awaited."""
        return self._wait_for(answer) if inspect.isawaitable(answer) else answer

    def results(self, answers: Sequence[Any]) -> list[Any]:
        """The answers, in order. Awaitable ones are awaited together; the first error is raised when all are done."""
        if any(map(inspect.isawaitable, answers)):
            return list(self._wait_for(_together(answers)))
        return list(answers)

    def close(self) -> None:
        """Cancel the tasks that still run, and end the thread. A later call starts a new loop."""
        if self._finish is not None:
            self._finish()
        self._loop, self._finish = None, None

    def _wait_for(self, answer: Any) -> Any:
        torch = sys.modules.get("torch")
        gradients = torch is None or torch.is_grad_enabled()  # a setting of each thread
        outcome = asyncio.run_coroutine_threadsafe(_outcome(answer, gradients), self._started()).result()
        if isinstance(outcome, _Raised):
            raise outcome.error
        return outcome

    def _started(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            thread = threading.Thread(target=_run, args=(self._loop,), name="reward-loop", daemon=True)
            thread.start()
            finalizer = weakref.finalize(self, _stop, self._loop, thread)
            finalizer.atexit = False
            self._finish = finalizer
        return self._loop


class _Raised:
    """An exception as a value, so that also one that would end the loop reaches the calling thread."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


async def _outcome(answer: Any, gradients: bool) -> Any:
    try:
        with nullcontext() if gradients else without_gradients():
            return await answer
    except BaseException as error:
        return _Raised(error)


async def _together(answers: Sequence[Any]) -> list[Any]:
    waiting = [answer for answer in answers if inspect.isawaitable(answer)]
    finished = iter(await asyncio.gather(*waiting, return_exceptions=True))
    done = [next(finished) if inspect.isawaitable(answer) else answer for answer in answers]
    for answer in done:
        if isinstance(answer, BaseException):
            raise answer
    return done


def _run(loop: asyncio.AbstractEventLoop) -> None:
    """Run the loop until `stop`. SystemExit in a task ends `run_forever`; its task has the exception, so go on."""
    asyncio.set_event_loop(loop)
    while True:
        try:
            loop.run_forever()
        except (SystemExit, KeyboardInterrupt):
            continue
        loop.close()
        return


def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    """Cancel all tasks and stop the loop, unless it does not react within `CLOSING_LIMIT`."""
    closing = asyncio.run_coroutine_threadsafe(_cancel_tasks(), loop)
    closing.add_done_callback(lambda _: loop.call_soon_threadsafe(loop.stop))
    if threading.current_thread() is not thread:
        thread.join(2 * CLOSING_LIMIT)


async def _cancel_tasks() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=CLOSING_LIMIT)
    await asyncio.get_running_loop().shutdown_asyncgens()
