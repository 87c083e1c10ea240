"""The thread in which the code of a reward runs."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")
_Job = tuple[Callable[[], Any], Future[Any]]


@dataclass(eq=False)
class CallingThread:
    """A thread that runs one function after another. It starts with the first one.

    It is a daemon: the end of the program does not wait for it. A function that has started runs to its end.
    """

    name: str
    _jobs: queue.SimpleQueue[_Job | None] = field(default_factory=queue.SimpleQueue, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)

    def submit(self, function: Callable[[], T]) -> Future[T]:
        """Queue a function and return the future of its result. What it raises does not end the thread."""
        if self._thread is None:
            self._thread = threading.Thread(target=_work, args=(self._jobs,), name=self.name, daemon=True)
            self._thread.start()
        future: Future[T] = Future()
        self._jobs.put((function, future))
        return future

    def end(self, wait: float) -> None:
        """End the thread after the functions in the queue. Waits up to `wait` seconds for its end."""
        self._jobs.put(None)
        if self._thread is not None:
            self._thread.join(wait)


def _work(jobs: queue.SimpleQueue[_Job | None]) -> None:
    """Run one job after another until a None comes."""
    while (job := jobs.get()) is not None:
        function, future = job
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)
        del job, function, future  # do not keep a batch in memory until the next call
