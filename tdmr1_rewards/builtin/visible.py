"""Which characters of a text can be seen."""

from __future__ import annotations

import unicodedata

BLANK_LETTERS = "\u115f\u1160\u2800\u3164\uffa0"
"""Letters and symbols that look like a blank: Hangul fillers and the empty braille pattern."""
ZERO_WIDTH = "\u00ad\u034f\u061c\u180e\u200b\u200c\u200d\u200e\u200f\u2060\u2061\u2062\u2063\u2064"
"""Characters without a width that have no meaning at the start or end of a text."""


def has_visible(text: str) -> bool:
    """Whether the text has a visible character: no white space, control, format or combining character, no filler."""
    return any(_is_visible(character) for character in text)


def strip_blanks(text: str) -> str:
    """The text without white space, characters that look like a blank, and zero-width characters at start and end."""
    start, end = 0, len(text)
    while start < end and _is_blank(text[start]):
        start += 1
    while start < end and _is_blank(text[end - 1]):
        end -= 1
    return text[start:end]


def find_invisible(text: str) -> str | None:
    """The first character that cannot be seen and is neither white space nor a combining character; None if none is."""
    hidden = (character for character in text if not character.isspace() and not _is_visible(character))
    return next((character for character in hidden if not unicodedata.category(character).startswith("M")), None)


def _is_visible(character: str) -> bool:
    return unicodedata.category(character)[0] not in "ZCM" and character not in BLANK_LETTERS


def _is_blank(character: str) -> bool:
    return character.isspace() or character in BLANK_LETTERS or character in ZERO_WIDTH
