"""JSONL files: one JSON object per line. A warning names unreadable lines; all other lines are read."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tdmr1_core.durable_files import MALFORMED, append_durable, replace_durable
from tdmr1_core.errors import Tdmr1Error, warn
from tdmr1_rewards.texts.documents import parse_json
from tdmr1_rewards.texts.redaction import redact_texts

T = TypeVar("T")
Row = dict[str, Any]
DAMAGED = ".damaged"
"""The suffix of the file that unreadable lines are moved to."""
LARGEST_COUNT = 2**53
"""Integers up to this one are exact as a float."""
MAX_LISTED = 5
"""At most this many line numbers are listed in a warning."""


def read_lines(path: Path, convert: Callable[[Row], T]) -> list[T]:
    """The objects in a file, each converted; none for a missing file. Warns of unreadable lines and skips them.

    A last line without a newline is what a crash leaves: if it is unreadable, it is skipped without a warning. Raises
    Tdmr1Error for a file that cannot be read.
    """
    converted: list[T] = []
    unreadable: list[int] = []
    for number, line, is_cut in _lines(path):
        try:
            converted.append(convert(_parse(line)))
        except MALFORMED:
            unreadable += [] if is_cut else [number]
    if unreadable:
        _warn_unreadable(path, unreadable, "skipped")
    return converted


def keep_lines(
    path: Path, is_kept: Callable[[Row], bool] = lambda row: True, *, added: Sequence[Row] = ()
) -> list[Row]:
    """Remove all other objects from a file and append `added`, in one atomic write; returns the kept objects.

    Unreadable lines are moved to a file beside it, with a warning. An unreadable last line without a newline is
    deleted. Raises Tdmr1Error for a file that cannot be read, OSError for one that cannot be written.
    """
    rows: list[Row] = []
    kept: list[bytes] = []
    unreadable: dict[int, bytes] = {}
    for number, line, is_cut in _lines(path):
        try:
            row = _parse(line)
            if is_kept(row):
                rows.append(row)
                kept.append(line)
        except MALFORMED:
            unreadable |= {} if is_cut else {number: line}
    if unreadable:
        aside = path.with_name(path.name + DAMAGED)
        append_durable(aside, _join(list(unreadable.values())))
        _warn_unreadable(path, list(unreadable), f"moved to {aside.name}")
    content = _join(kept) + as_lines(added)
    if _content(path) != content:
        replace_durable(path, content)
    return rows


def as_lines(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Objects as the lines of a file, without secrets in their texts."""
    return "".join(json.dumps(redact_texts(row)) + "\n" for row in rows).encode()


def step_of(row: Row) -> int:
    """The iteration of a row, its key `step`. Raises KeyError or ValueError if it has none."""
    return whole_number(row["step"])


def whole_number(value: Any) -> int:
    """An integer from 0 to LARGEST_COUNT, read from JSON. Raises ValueError for anything else."""
    if type(value) is not int or not 0 <= value <= LARGEST_COUNT:
        raise ValueError(f"{value!r} is not a count")
    return value


def number(value: Any) -> float:
    """A float read from JSON; NaN and infinity are allowed. Raises TypeError or OverflowError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is not a number")
    return float(value)


def score(value: Any) -> float | None:
    """A score read from JSON, or None. Raises ValueError for one that is not finite, and as `number` does."""
    if value is None:
        return None
    if not math.isfinite(found := number(value)):
        raise ValueError(f"{value!r} is not finite")
    return found


def _lines(path: Path) -> Iterator[tuple[int, bytes, bool]]:
    """Each line that is not empty: its number from 1, its content, and whether it is a last line without a newline."""
    lines = _content(path).split(b"\n")
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, line, number == len(lines)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise Tdmr1Error(
            f"{path} cannot be read: {error.strerror}",
            "check the permissions, or move away what is in the place of the file",
            code="record-damaged",
            values={"path": str(path), "reason": error.strerror},
        ) from error


def _parse(line: bytes) -> Row:
    row = parse_json(line)
    if not isinstance(row, dict):
        raise TypeError("not an object")
    return row


def _join(lines: Sequence[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def _warn_unreadable(path: Path, numbers: Sequence[int], consequence: str) -> None:
    listed = ", ".join(map(str, numbers[:MAX_LISTED])) + (", …" if len(numbers) > MAX_LISTED else "")
    what = f"line {listed} of {path}" if len(numbers) == 1 else f"{len(numbers)} lines of {path} ({listed})"
    warn(f"{what} cannot be read ({consequence})", code="record-damaged", path=str(path), lines=list(numbers))
