"""A stop that the user asked for: no error, and yet not a success."""

from __future__ import annotations


class Stopped(Exception):
    """The user stopped a command; `message` says what is left of it and `hint` how to go on."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
