"""Ends that are no errors: a stop that the user asked for, and what other processes have told already."""

from __future__ import annotations


class Stopped(Exception):
    """The user stopped a command; `message` says what is left of it and `hint` how to go on."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class Told(Exception):
    """Another process has told all there is; what is left is to leave with its exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code
