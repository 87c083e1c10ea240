"""What the readers of prompt files share: entries, the faults of entries, and the errors for a whole file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from tdmr1_core.errors import Tdmr1Error, close_match, shorten
from tdmr1_rewards.texts.documents import (
    LONGEST_METADATA,
    LONGEST_PROMPT,
    MOST_BYTES,
    MOST_DEPTH,
    UnreadableDocument,
    read_file,
)

KEY = "prompt"
"""The key or column of the prompt."""
OTHER_KEYS = ("caption", "captions", "text", "texts")
"""Keys or columns that are often used instead."""
MAX_LISTED = 5
"""At most this many places or names are listed in a message."""
REMOVE = "remove the metadata that no reward needs"
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
"""Half of a surrogate pair, which JSON can have and no file can."""
LINE_ENDINGS = "save it with the line endings of Unix"


@dataclass(frozen=True)
class Entry:
    """One entry of a prompt file: its place, such as "line 3", its prompt as it was found, and its metadata."""

    place: str
    value: Any
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class Fault:
    """Stands for a value that cannot be read. `found` says what there is instead; `hint` is the fix, if it is known."""

    found: str
    hint: str | None = None


def nested_fault(value: Any) -> Fault | None:
    """The first Fault in a value of lists and objects, or one for too many levels; None without a fault."""
    waiting = [(value, 1)]
    while waiting:
        item, depth = waiting.pop()
        if isinstance(item, Fault):
            return item
        if isinstance(item, str) and LONE_SURROGATE.search(item):
            return Fault("a string with half of a surrogate pair")
        if isinstance(item, dict | list):
            if depth > MOST_DEPTH:
                return Fault(f"values that are nested more than {MOST_DEPTH} levels deep", REMOVE)
            inner = [*item, *item.values()] if isinstance(item, dict) else item
            waiting += [(each, depth + 1) for each in reversed(list(inner))]
    return None


def rename_hint(kind: str, names: Iterable[str]) -> str | None:
    """The hint for a `kind` ("key" or "column") without the name `prompt`: the name that was probably meant."""
    names = list(names)
    meant = close_match(KEY, names) or next((name for name in OTHER_KEYS if name in names), None)
    return f"if the {kind} {meant!r} has the prompt, rename it to {KEY!r}" if meant else None


def listed(items: Iterable[str]) -> str:
    """The first items, separated by commas."""
    items = list(items)
    return ", ".join(items[:MAX_LISTED]) + (", …" if len(items) > MAX_LISTED else "")


def quoted(names: Iterable[str]) -> str:
    """The first names, in quotation marks and separated by commas."""
    return listed(repr(shorten(name)) for name in names)


def describe(value: Any) -> str:
    """What a value is, for messages."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, list):
        chat = value and all(isinstance(item, dict) and "content" in item for item in value)
        return "a chat, which is a list of messages" if chat else "a list"
    if isinstance(value, dict):
        return "an object"
    return f"a value of type {type(value).__name__}"


def lines(path: Path) -> Iterator[tuple[int, str]]:
    r"""The lines that are not blank, with their numbers from 1. Lines end at \n or \r\n.

    Raises Tdmr1Error for a line that is longer than the longest prompt with the longest metadata.
    """
    longest = LONGEST_PROMPT + LONGEST_METADATA
    for number, line in enumerate(content(path).split("\n"), 1):
        if len(line) > longest:
            reason = f"line {number} has {len(line)} characters, more than {longest}"
            raise unreadable(path, reason, "shorten the prompt and its metadata")
        if line.strip():
            yield number, line.removesuffix("\r")


def content(path: Path) -> str:
    """The text of a file, without a byte-order mark at its start. Raises Tdmr1Error as `raw_content` does."""
    try:
        return raw_content(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise unreadable(path, f"it is not UTF-8 text (at byte {error.start})", "save it as UTF-8") from error


def raw_content(path: Path) -> bytes:
    """The bytes of a file. Raises Tdmr1Error if it cannot be read, is a pipe or device, or is too large."""
    try:
        return read_file(path, MOST_BYTES)
    except UnreadableDocument as error:
        raise unreadable(path, str(error), "save the prompts as a smaller file") from error
    except OSError as error:
        raise unreadable(path, str(error.strerror), "check its permissions") from error


def unreadable(path: Path, reason: str, hint: str) -> Tdmr1Error:
    """The error for a file that cannot be read."""
    return Tdmr1Error(
        f"the prompt file {path} cannot be read: {reason}",
        hint,
        code="prompts-unreadable",
        values={"path": str(path), "reason": reason},
    )


def refuse(path: Path, found: str, hint: str) -> NoReturn:
    """Raise the error for content that contradicts the suffix of the file."""
    suffix = f"has the suffix {path.suffix}" if path.suffix else "has no suffix"
    raise Tdmr1Error(
        f"the prompt file {path} {suffix}, but contains {found}",
        hint,
        code="prompts-unreadable",
        values={"path": str(path), "suffix": path.suffix, "found": found},
    )
