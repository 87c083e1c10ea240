"""Reads text files with one prompt per line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tdmr1_core.prompts.entries import LINE_ENDINGS, Entry, lines, refuse
from tdmr1_core.prompts.signs import FIRST_LINE_SIGNS, SIGNS, Sign, find_sign
from tdmr1_rewards.builtin.visible import strip_blanks

RAW_SIGNS = (
    Sign("a NUL character", "save it as UTF-8 text; UTF-16 text has such characters", lambda line: "\0" in line),
    Sign("a carriage return without a line feed", LINE_ENDINGS, lambda line: "\r" in line),
)
"""Signs for a line with its surrounding blanks."""
LINE_SIGNS = (
    *SIGNS,
    Sign("a tab", "give a table the suffix .tsv, and its columns a header", lambda line: "\t" in line),
)
"""Signs for a line without surrounding blanks."""


def read_text(path: Path) -> Iterator[Entry]:
    """The lines that are not blank. Raises Tdmr1Error for a line that is part of another format."""
    first = True
    for number, line in lines(path):
        shown = strip_blanks(line)
        sign = find_sign(line, RAW_SIGNS) or find_sign(shown, LINE_SIGNS)
        sign = sign or (find_sign(shown, FIRST_LINE_SIGNS) if first else None)
        if sign:
            refuse(path, f"{sign.found} in line {number}", sign.hint)
        first = False
        yield Entry(f"line {number}", line, {})
