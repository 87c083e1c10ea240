"""Ends that are no errors: a stop that the user asked for, and what other processes have told already."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(Exception):
    """The user stopped a command; `message` says what is left of it and `hint` how to go on."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ExitWithCode(Exception):
    """Another process has told all there is; what is left is to leave with its exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@contextmanager
def leaving_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end what goes on as Ctrl-C does: with a word, and with what is half written cleared away."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    former = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)
