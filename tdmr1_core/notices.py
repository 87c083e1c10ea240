"""What a run has to say beside its results: told once, through Python's warnings, so that any program can catch it."""

from __future__ import annotations

import warnings


class RunWarning(UserWarning):
    """Something that the user should know of, and that the run goes on in spite of."""


def notice(text: str) -> None:
    """Tell it."""
    warnings.warn(text, RunWarning, stacklevel=3)
