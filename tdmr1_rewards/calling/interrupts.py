"""Rewards that wait for people: how they say what they wait for, and hear that they should not wait any longer.

A reward that waits calls `tell` with what a person should know and `check` while it waits; whoever runs it listens with
`listening`, and asks it to stop with `interrupt`. Both are of the process, as signals are.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Listener = Callable[[str], None]

_listeners: list[Listener] = []
_interrupted = threading.Event()


class Interrupted(Exception):
    """A reward was asked to wait no longer; what it was asked to judge is to be asked again, later."""


def report(text: str) -> None:
    """Tell every listener what is waited for: one line, such as "waiting for people: 3 of 24 pictures judged"."""
    for listener in tuple(_listeners):
        listener(text)


def check() -> None:
    """Raise Interrupted if the waiting is to end."""
    if _interrupted.is_set():
        raise Interrupted


def pause(seconds: float) -> None:
    """Wait a little. Raises Interrupted if the waiting is to end, at once when that is asked for."""
    _interrupted.wait(seconds)
    check()


def interrupt() -> None:
    """Ask every reward that waits to stop waiting."""
    _interrupted.set()


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Let the listener hear what is waited for, from whatever thread; nothing asked for before interrupts it."""
    _interrupted.clear()
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)
        _interrupted.clear()
