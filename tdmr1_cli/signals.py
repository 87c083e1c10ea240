"""Other ends of a command: a stop by the user, a result that fails a check, and the exit code of another process."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tdmr1_rewards.errors import Tdmr1Error


class Stopped(Exception):
    """The user stopped a command. `message` says what is saved, and `hint` how to continue."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class CheckFailed(Tdmr1Error):
    """A command did its work, but the result is not what it is for. The exit code is 1."""


class ExitWithCode(Exception):
    """Another process has printed the error. Exit with its code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C: print a message and remove partly written files."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    former = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)
