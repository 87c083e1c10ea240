"""Errors and warnings of the core. Warnings use Python's `warnings`, so that any program can catch them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from tdmr1_rewards.errors import UNSPECIFIED, Tdmr1Error, close_match_hint

__all__ = ["ErrorCollector", "PeerExited", "RunWarning", "Tdmr1Error", "close_match_hint", "warn"]


Result = TypeVar("Result")


class ErrorCollector:
    """Collects errors, so that all of them can be reported at once."""

    def __init__(self) -> None:
        self.errors: list[Tdmr1Error] = []

    def attempt(self, action: Callable[[], Result]) -> Result | None:
        """The result of the action, or None if it raises a Tdmr1Error, which is kept."""
        try:
            return action()
        except Tdmr1Error as error:
            if error.document() not in [other.document() for other in self.errors]:
                self.errors.append(error)
            return None

    def raise_all(self) -> None:
        """Raise the only error, or one error of code `several-errors` that names all; nothing without errors."""
        if len(self.errors) == 1:
            raise self.errors[0]
        if self.errors:
            messages = "; ".join(error.message for error in self.errors)
            hints = dict.fromkeys(error.hint for error in self.errors if error.hint)
            raise Tdmr1Error(
                f"{len(self.errors)} errors: {messages}",
                "; ".join(hints) or None,
                code="several-errors",
                values={"errors": [error.document() for error in self.errors]},
            )


class PeerExited(Exception):
    """Another process of the run has exited. That process, or its launcher, reports the reason."""


class RunWarning(UserWarning):
    """A problem that does not stop the run. `code` and `values` are as in Tdmr1Error."""

    def __init__(self, message: str, *, code: str = UNSPECIFIED, values: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.values = dict(values or {})


def warn(message: str, *, code: str = UNSPECIFIED, **values: Any) -> None:
    """Issue a RunWarning. `code` is one of `tdmr1_rewards.errors.CODES`; `values` are the numbers in the message."""
    warnings.warn(RunWarning(message, code=code, values=values), stacklevel=3)
