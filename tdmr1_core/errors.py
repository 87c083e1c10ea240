"""Errors and warnings of the core. Warnings use Python's `warnings`, so that any program can catch them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from tdmr1_rewards.errors import UNSPECIFIED, Tdmr1Error, close_match, close_match_hint, join_hints, shorten
from tdmr1_rewards.texts.redaction import redact, redact_texts

__all__ = [
    "PeerExited",
    "RunWarning",
    "Tdmr1Error",
    "close_match",
    "close_match_hint",
    "join_hints",
    "raise_together",
    "shorten",
    "warn",
]


def raise_together(errors: Sequence[Tdmr1Error]) -> None:
    """Raise the only error, or one error of code `several-errors` that names all; nothing without errors."""
    distinct = list({str(error.document()): error for error in errors}.values())
    if len(distinct) == 1:
        raise distinct[0]
    if distinct:
        messages = "; ".join(error.message for error in distinct)
        raise Tdmr1Error(
            f"{len(distinct)} errors: {messages}",
            join_hints(*(error.hint for error in distinct)),
            code="several-errors",
            values={"errors": [error.document() for error in distinct]},
        )


class PeerExited(Exception):
    """Another process of the run has exited. That process, or its launcher, reports the reason."""


class RunWarning(UserWarning):
    """A problem that does not stop the run. `code` and `values` are as in Tdmr1Error."""

    def __init__(self, message: str, *, code: str = UNSPECIFIED, values: Mapping[str, Any] | None = None) -> None:
        super().__init__(redact(message))
        self.code = code
        self.values: dict[str, Any] = redact_texts(dict(values or {}))


def warn(message: str, *, code: str = UNSPECIFIED, **values: Any) -> None:
    """Issue a RunWarning. `code` is one of `tdmr1_rewards.errors.CODES`; `values` are the numbers in the message."""
    warnings.warn(RunWarning(message, code=code, values=values), stacklevel=3)
