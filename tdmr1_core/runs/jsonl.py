"""Files of lines, one JSON object a line: what can't be read among them is told, and the rest is read all the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tdmr1_core.durable_files import MALFORMED, append_durable, replace_durable
from tdmr1_core.errors import Tdmr1Error, warn

T = TypeVar("T")
Row = dict[str, Any]
DAMAGED = ".damaged"
"""What is put after the name of a file for the one that holds its lines that could not be read."""
LARGEST = 2**53
"""Whole numbers up to this one are exact as a float too."""
MOST_NAMED = 5


def read_lines(path: Path, take: Callable[[Row], T]) -> list[T]:
    """What `take` makes of each object in a file; a line that nothing can be made of is left out, and told.

    A last line without its end is what a crash leaves: it isn't told. No file has no lines. Raises Tdmr1Error for one
    that can't be read.
    """
    taken: list[T] = []
    unread: list[int] = []
    for number, line, is_last in _lines(path):
        try:
            taken.append(take(_parse(line)))
        except MALFORMED:
            unread += [] if is_last else [number]
    if unread:
        warn(f"{_told(path, unread)}: left out")
    return taken


def keep_lines(path: Path, is_kept: Callable[[Row], bool] = lambda row: True) -> list[Row]:
    """Keep the objects of a file that are to be kept, and return them; the file is a whole one at any time.

    Lines that can't be read are moved to a file beside it, and told; a last one that a crash has cut short is dropped.
    Raises Tdmr1Error for a file that can't be read, OSError for one that can't be written.
    """
    rows: list[Row] = []
    kept: list[bytes] = []
    unread: dict[int, bytes] = {}
    for number, line, is_last in _lines(path):
        try:
            row = _parse(line)
            if is_kept(row):
                rows.append(row)
                kept.append(line)
        except MALFORMED:
            unread |= {} if is_last else {number: line}
    if unread:
        aside = path.with_name(path.name + DAMAGED)
        append_durable(aside, _join(list(unread.values())))
        warn(f"{_told(path, list(unread))}: moved to {aside.name}")
    if path.exists() and _content(path) != _join(kept):
        replace_durable(path, _join(kept))
    return rows


def step_of(row: Row) -> int:
    """The iteration that a row tells of. Raises KeyError or ValueError if it names none."""
    return whole_number(row["step"])


def whole_number(value: Any) -> int:
    """A count from JSON. Raises ValueError for anything else."""
    if type(value) is not int or not 0 <= value <= LARGEST:
        raise ValueError(f"{value!r} is not a count")
    return value


def number(value: Any) -> float:
    """A number from JSON, which may be NaN or infinite. Raises TypeError or OverflowError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is not a number")
    return float(value)


def _lines(path: Path) -> Iterator[tuple[int, bytes, bool]]:
    """Number from 1, line, and whether it is a last one without its end; empty ones are none."""
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
            f"{path} can't be read: {error.strerror}", "see what stands there, and move it away"
        ) from error


def _parse(line: bytes) -> Row:
    row = json.loads(line.decode())
    if not isinstance(row, dict):
        raise TypeError("not an object")
    if b"\\ud" in line.lower():
        json.dumps(row, ensure_ascii=False).encode()  # raises for half a character, which nothing could show
    return row


def _join(lines: Sequence[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def _told(path: Path, numbers: Sequence[int]) -> str:
    listed = ", ".join(map(str, numbers[:MOST_NAMED])) + (", …" if len(numbers) > MOST_NAMED else "")
    if len(numbers) == 1:
        return f"line {listed} of {path} can't be read"
    return f"{len(numbers)} lines of {path} can't be read ({listed})"
