"""Progress and interruption of rewards that wait for people, and of the wait for rewards that hang.

A waiting reward calls `report` with its progress, and `check` or `pause` while it waits. The program that runs it
receives the progress through `listening`, and ends the waiting with `interrupt`. Listeners and the interrupt apply to
the whole process.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
Listener = Callable[[str], None]

POLL = 0.5
"""Seconds between two checks of `wait_for` for an interrupt."""

_listeners: list[Listener] = []
_interrupted = threading.Event()
_given_up_at: float | None = None
"""When `wait_for` no longer waits, by time.monotonic()."""


class Interrupted(Exception):
    """A waiting reward was interrupted. Its batch has no scores and must be scored again later."""


def report(text: str) -> None:
    """Send one line of progress to every listener, such as "waiting for people: 3 of 24 images judged"."""
    for listener in tuple(_listeners):
        listener(text)


def check() -> None:
    """Raise Interrupted after a call of `interrupt`."""
    if _interrupted.is_set():
        raise Interrupted


def pause(seconds: float) -> None:
    """Wait for some seconds. A call of `interrupt` ends the wait immediately and raises Interrupted."""
    _interrupted.wait(seconds)
    check()


def interrupt(patience: float | None = None) -> None:
    """Make every waiting reward raise Interrupted, and `wait_for` too after `patience` seconds, if that is not None."""
    global _given_up_at
    _given_up_at = None if patience is None else time.monotonic() + patience
    _interrupted.set()


def wait_for(future: Future[T]) -> T:
    """The result of a future. Raises Interrupted if there is none some time after a call of `interrupt`."""
    while not wait([future], POLL).done:
        if _given_up_at is not None and time.monotonic() > _given_up_at:
            raise Interrupted
    return future.result()


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Send progress to the listener during the context, from any thread. Earlier calls of `interrupt` are forgotten."""
    _forget()
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
        _forget()


def _forget() -> None:
    global _given_up_at
    _given_up_at = None
    _interrupted.clear()
