"""The one error type that a user is meant to read, and the "did you mean" beside it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class Tdmr1Error(Exception):
    """Something a user can mend: one clear sentence, and where there is one, a hint at the way out."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def close_match_hint(name: str, known: Iterable[str]) -> str:
    """Words to follow an unknown name: the known name it looks like, or else all the known names."""
    names = sorted(set(known))
    matches = difflib.get_close_matches(name, names, n=1)
    if matches:
        return f"did you mean {matches[0]!r}?"
    return f"known: {', '.join(names)}" if names else "none is known"


def told(error: BaseException) -> str:
    """An exception in one line, as part of a sentence."""
    if isinstance(error, Tdmr1Error):
        return f"{error.message} ({error.hint})" if error.hint else error.message
    return f"{type(error).__name__}: {one_line(str(error))}".removesuffix(": ")


def one_line(text: str) -> str:
    """The words of a text, without its line breaks."""
    return " ".join(text.split())
