"""Errors and warnings of the core. Warnings use Python's `warnings`, so that any program can catch them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from tdmr1_rewards.errors import UNSPECIFIED, Tdmr1Error, close_match_hint

__all__ = ["PeerExited", "RunWarning", "Tdmr1Error", "close_match_hint", "warn"]


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
