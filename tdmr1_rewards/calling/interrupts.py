"""Progress and interruption of rewards that wait for people.

A waiting reward calls `report` with its progress, and `check` or `pause` while it waits. The program that runs it
receives the progress through `listening`, and ends the waiting with `interrupt`. Listeners and the interrupt apply to
the whole process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Listener = Callable[[str], None]

_listeners: list[Listener] = []
_interrupted = threading.Event()


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


def interrupt() -> None:
    """Make every waiting reward raise Interrupted."""
    _interrupted.set()


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Send progress to the listener during the context, from any thread. Earlier calls of `interrupt` are forgotten."""
    _interrupted.clear()
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
        _interrupted.clear()
