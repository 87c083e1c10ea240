"""Reads JSON files: one object per line (.jsonl), or a list of strings or objects (.json)."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tdmr1_core.errors import join_hints, shorten
from tdmr1_core.prompts.entries import (
    KEY,
    REMOVE,
    Entry,
    Fault,
    content,
    describe,
    lines,
    nested_fault,
    quoted,
    refuse,
    rename_hint,
    unreadable,
)
from tdmr1_rewards.texts.documents import TooDeepError, parse_json

OBJECT_PER_LINE = 'write one object per line: {"prompt": "…"}'
WRITE_LIST = 'write a list: ["…", "…"] or [{"prompt": "…"}, …]'
LIST_SUFFIX = "give a JSON list the suffix .json"
AS_STRING = "write it as a string"
TOO_DEEP = "values that are nested too deeply"


def read_jsonl(path: Path) -> Iterator[Entry]:
    """An entry for each line that is not blank."""
    first = True
    for number, line in lines(path):
        yield _of_line(f"line {number}", line, first)
        first = False


def read_json(path: Path) -> Iterator[Entry]:
    """A list of strings or objects, or one object per line."""
    return json_entries(content(path), path)


def json_entries(text: str, path: Path) -> Iterator[Entry]:
    """The entries of the text of a JSON file; `path` is the file in messages."""
    try:
        document = _parse(text) if text.strip() else []
    except TooDeepError as error:
        raise unreadable(path, f"it has {TOO_DEEP}", REMOVE) from error
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            yield from read_jsonl(path)
            return
        raise unreadable(path, f"it is not JSON: {error}", "correct it there") from error
    if isinstance(document, Fault) or (isinstance(document, dict) and KEY in document):
        document = [document]
    if isinstance(document, dict):
        refuse(path, _without_prompt(document), join_hints(_hint(document), WRITE_LIST) or WRITE_LIST)
    if not isinstance(document, list):
        refuse(path, describe(document), WRITE_LIST)
    for number, item in enumerate(document, 1):
        place = f"item {number}"
        yield Entry(place, item, {}) if isinstance(item, str) else _of_value(place, item)


def _of_line(place: str, line: str, first: bool) -> Entry:
    try:
        item = _parse(line)
    except TooDeepError:
        return Entry(place, Fault(TOO_DEEP, REMOVE), {})
    except json.JSONDecodeError as error:
        return Entry(place, _not_json(line, error, first), {})
    if first and isinstance(item, list):
        return Entry(place, Fault(describe(item), LIST_SUFFIX), {})
    return _of_value(place, item)


def _not_json(line: str, error: json.JSONDecodeError, first: bool) -> Fault:
    """What a line has that is not JSON."""
    if line.startswith("\ufeff"):
        return Fault("a byte-order mark at its start", "remove it; only a file may start with a byte-order mark")
    if error.msg == "Extra data" and line[error.pos :].strip() == ",":
        return Fault("a comma after the object", "remove the commas between lines, or write a list with suffix .json")
    if first and line.lstrip().startswith("["):
        return Fault("the start of a list", LIST_SUFFIX)
    return Fault(f"no JSON object ({error.msg}, at character {error.pos + 1})", OBJECT_PER_LINE)


def _of_value(place: str, item: Any) -> Entry:
    """The entry of a JSON value, which must be an object with the key `prompt`. The object is its metadata."""
    if fault := nested_fault(item):
        return Entry(place, fault, {})
    if not isinstance(item, dict):
        return Entry(place, Fault(describe(item)), {})
    if KEY not in item:
        return Entry(place, Fault(_without_prompt(item), _hint(item)), {})
    return Entry(place, item[KEY], item)


def _without_prompt(item: Mapping[str, Any]) -> str:
    return f"an object without the key {KEY!r} (its keys: {quoted(item) or 'none'})"


def _hint(item: Mapping[str, Any]) -> str | None:
    """The key whose string may be the prompt of an object that has none."""
    return rename_hint("key", (key for key, value in item.items() if isinstance(value, str)))


def _parse(text: str) -> Any:
    """A JSON value. A Fault stands for what JSON does not allow, and for what would be changed by reading it."""
    return parse_json(
        text, None, object_pairs_hook=_object, parse_constant=_constant, parse_int=_whole_number, parse_float=_number
    )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | Fault:
    item = dict(pairs)
    if len(item) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        return Fault(f"the key {shorten(twice)!r} twice", "keep one of them")
    return item


def _constant(name: str) -> Fault:
    return Fault(f"{name}, which is not JSON", "write null, or remove the key")


def _whole_number(text: str) -> int | Fault:
    try:
        return int(text)
    except ValueError:  # Python limits the number of digits
        return Fault(f"a number with {len(text.lstrip('-'))} digits", AS_STRING)


def _number(text: str) -> float | Fault:
    number = float(text)
    return number if math.isfinite(number) else Fault(f"the number {shorten(text)}, which is too large", AS_STRING)
