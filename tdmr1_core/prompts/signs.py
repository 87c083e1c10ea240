"""Signs that a text is not a prompt, but part of another format."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tdmr1_rewards.texts.documents import parse_json

AS_PLAIN_TEXT = "save the prompts as plain text"
NAME = re.compile(r"[\w-]+( +[\w-]+){0,2}")
"""The name of a column: up to three words of letters, digits, _ and -."""
MAX_NAME = 30
"""A longer text is no name of a column."""
PROMPT_COLUMNS = {"prompt", "prompts", "caption", "text"}
QUOTED_KEY = re.compile(r"""(["'])(?:(?!\1).)*\1\s*:""", re.DOTALL)
"""A quoted string followed by a colon."""
JSON_START = re.compile(r"""[\[{][\[{\s]*$|(\[\s*)?\{\s*(["'])(?:(?!\2).)*\2\s*:|\[\s*".*",$""")
"""The first line of JSON with several lines: only brackets, an object with its first key, or a list of strings."""


@dataclass(frozen=True)
class Sign:
    """A sign of another format: what a text contains that `matches`, and the fix."""

    found: str
    hint: str
    matches: Callable[[str], object]


def find_sign(text: str, signs: Sequence[Sign]) -> Sign | None:
    """The first of the signs that the text has; None without one."""
    return next((sign for sign in signs if sign.matches(text)), None)


def is_json_like(text: str) -> bool:
    """Whether a text is JSON, or seems to be: an object or list with quoted keys, or the first line of one."""
    if not text.startswith(("{", "[")):
        return False
    whole = text.removesuffix(",").rstrip()
    closed = whole.endswith("}" if text[0] == "{" else "]")
    return bool(closed and QUOTED_KEY.search(whole)) or bool(JSON_START.match(text)) or _is_json(whole)


def is_header(line: str) -> bool:
    """Whether a line is the header of a table: names of columns, of which one is that of the prompt."""
    for delimiter in ",;|\t":
        cells = [cell.strip().strip('"').strip().lower() for cell in line.split(delimiter)]
        if PROMPT_COLUMNS.intersection(cells) and all(len(c) <= MAX_NAME and NAME.fullmatch(c) for c in cells):
            return True
    return False


def _is_json(text: str) -> bool:
    try:
        parse_json(text)
    except ValueError:
        return False
    return True


SIGNS = (
    Sign("a marker of a merge conflict", "resolve the conflict", re.compile(r"(<{7}|>{7}|\|{7}) |={7}$").match),
    Sign(
        "a Git LFS pointer instead of the file",
        "fetch the file with `git lfs pull`",
        re.compile("version https://git-lfs").match,
    ),
    Sign("a PDF document", AS_PLAIN_TEXT, re.compile("%PDF-").match),
    Sign("an RTF document", AS_PLAIN_TEXT, re.compile(r"\{\\rtf").match),
    Sign("an HTML or XML document", AS_PLAIN_TEXT, re.compile(r"<(!doctype|html|\?xml)\b", re.IGNORECASE).match),
    Sign(
        "what looks like JSON",
        "give JSON the suffix .jsonl or .json, which a prompt that looks like JSON needs too",
        is_json_like,
    ),
)
"""Signs for any line of a text file and for the prompt of a table, without surrounding blanks."""

FIRST_LINE_SIGNS = (
    Sign("the header of a table", "give a table the suffix .csv (with commas) or .tsv (with tabs)", is_header),
    Sign(
        "the start of a YAML document",
        "write one prompt per line, or use .jsonl",
        re.compile(r"(---|%YAML .*|(prompts?|captions?|texts?):)$", re.IGNORECASE).match,
    ),
)
"""Signs for the first line of a text file only."""
