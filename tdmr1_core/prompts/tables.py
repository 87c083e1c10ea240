"""Reads tables with a header: text with commas (.csv) or tabs (.tsv), and Parquet."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator, Sequence
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from tdmr1_core.errors import Tdmr1Error, join_hints, shorten
from tdmr1_core.prompts.entries import (
    KEY,
    LINE_ENDINGS,
    Entry,
    Fault,
    content,
    describe,
    nested_fault,
    quoted,
    raw_content,
    refuse,
    rename_hint,
    unreadable,
)
from tdmr1_core.prompts.signs import SIGNS, find_sign
from tdmr1_rewards.builtin.visible import find_invisible, strip_blanks

PARQUET_INSTALL = "pip install 'tdmr1[parquet]'"
LONE_RETURN = "a carriage return without a line feed"
CSV_FAULTS = {
    "new-line character": (LONE_RETURN + " in line {end}", LINE_ENDINGS),
    "field larger than": ("a cell of more than {limit} characters in line {start}", "close its quotes, or shorten it"),
    "unexpected end of data": (
        "quotes without an end in line {start}",
        'close the quotes, and double quotes inside a quoted cell: ""',
    ),
    "": ("text after the end of a quoted cell in line {end}", 'double the quotes inside a quoted cell: ""'),
}
"""By the start of the message of `csv`: what a file contains, where `start` is the first line of the row and `end` the
line where reading stopped, and the fix."""
TEXT_VALUES = (date, time, timedelta, Decimal)
"""Types of cells, besides those of JSON, whose text is exact."""


def read_csv(path: Path) -> Iterator[Entry]:
    """The rows of a table with commas."""
    return _read_table(path, ",")


def read_tsv(path: Path) -> Iterator[Entry]:
    """The rows of a table with tabs."""
    return _read_table(path, "\t")


def read_parquet(path: Path) -> Iterator[Entry]:
    """The rows of a Parquet file. Metadata are JSON values; dates, times and decimal numbers become text."""
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise Tdmr1Error(
            f"the prompt file {path} needs pyarrow, which is not installed",
            PARQUET_INSTALL,
            code="dependency-missing",
            values={"package": "pyarrow", "path": str(path)},
        ) from error
    file = io.BytesIO(raw_content(path))
    try:
        table = parquet.ParquetFile(file).read()
    except pyarrow.ArrowException as error:
        reason = " ".join(str(error).split())
        raise unreadable(path, f"it is not a Parquet file: {reason}", "save it again") from error
    except OSError as error:
        raise unreadable(path, error.strerror or str(error), "check the file and its permissions") from error
    columns = _header(path, table.column_names)
    values = [cells(name, column, plain=name != KEY) for name, column in zip(columns, table.columns, strict=True)]
    for number, row in enumerate(zip(*values, strict=True), 1):
        entry = dict(zip(columns, row, strict=True))
        fault = next((value for value in row if isinstance(value, Fault)), None)
        metadata = {name: value for name, value in entry.items() if value is not None}
        yield Entry(f"row {number}", fault or entry[KEY], metadata)


def _read_table(path: Path, delimiter: str) -> Iterator[Entry]:
    """The rows of a table. The column `prompt` may be capitalized; the other cells are metadata, unless empty.

    Only lines without a cell are skipped.
    """
    raw = list(io.StringIO(content(path), newline="\n"))
    reader = csv.reader(raw, delimiter=delimiter, strict=True)
    columns: list[str] | None = None
    start = 1
    try:
        for row in reader:
            text, place, start = "".join(raw[start - 1 : reader.line_num]), f"line {start}", reader.line_num + 1
            if _lone_returns(text) > sum(map(_lone_returns, row)):
                refuse(path, f"{LONE_RETURN} in line {reader.line_num}", LINE_ENDINGS)
            if not text.strip(" \r\n"):
                continue
            if columns is not None:
                yield _of_row(path, place, columns, row)
            elif re.fullmatch("sep=.?", text.strip(), re.IGNORECASE):
                refuse(path, f"Excel's line {text.strip()!r} in {place}", "remove this line")
            else:
                columns = _header(path, row)
    except csv.Error as error:
        found, hint = next(fault for begin, fault in CSV_FAULTS.items() if str(error).startswith(begin))
        refuse(path, found.format(start=start, end=reader.line_num, limit=csv.field_size_limit()), hint)


def _lone_returns(text: str) -> int:
    """The number of carriage returns without a line feed. Those of a row are in its cells only if they are quoted."""
    return text.count("\r") - text.count("\r\n")


def _of_row(path: Path, place: str, columns: Sequence[str], row: Sequence[str]) -> Entry:
    if len(row) != len(columns):
        cells, expected = _count(len(row), "cell"), _count(len(columns), "column")
        hint = "write a cell that contains the delimiter, quotes or line ends between quotes"
        refuse(path, f"{cells} in {place}, but {expected}", hint)
    values = dict(zip(columns, row, strict=True))
    sign = find_sign(strip_blanks(values[KEY]), SIGNS)
    value = Fault(sign.found, sign.hint) if sign else values[KEY]
    return Entry(place, value, {name: cell for name, cell in values.items() if cell})


def _header(path: Path, cells: Sequence[str]) -> list[str]:
    """The names of the columns, with that of the prompt in lower case."""
    names = [cell.strip() for cell in cells]
    for name in names:
        if hidden := find_invisible(name):
            found = f"a column {shorten(ascii(name))} whose name has the invisible character U+{ord(hidden):04X}"
            refuse(path, found, "remove this character")
    columns = [KEY if name.lower() == KEY else name for name in names]
    if KEY not in columns:
        hint = "name the column of the prompts `prompt`; commas separate cells in .csv, tabs in .tsv"
        found = f"a header with no column {KEY!r} (its columns: {quoted(names) or 'none'})"
        refuse(path, found, join_hints(rename_hint("column", names), hint) or hint)
    if twice := next((name for name in columns if columns.count(name) > 1), None):
        refuse(path, f"a header with two columns {twice!r}", "rename one of them")
    if "" in columns:
        refuse(path, "a column without a name", "name it, or remove it (in pandas: to_csv(…, index=False))")
    return columns


def _count(number: int, noun: str) -> str:
    return f"1 {noun}" if number == 1 else f"{number} {noun}s"


def cells(name: str, column: Any, *, plain: bool = True) -> list[Any]:
    """The values of a column of Arrow; with `plain`, a Fault stands for each that is not exact as JSON."""
    try:
        values = column.to_pylist()
    except Exception:  # of many types: no valid UTF-8, a date that Python cannot represent, an unknown time zone
        values = [_cell(name, scalar) for scalar in column]
    return [_plain_cell(name, value) for value in values] if plain else values


def _cell(name: str, scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return Fault(f"text in the column {name!r} that is not UTF-8", "save the column as UTF-8 text")
    except Exception:  # as above
        found = f"a value of type {scalar.type} in the column {name!r} that cannot be represented"
        return Fault(found, "save the column as text, or remove it")


def _plain_cell(name: str, value: Any) -> Any:
    if isinstance(value, Fault):
        return value
    plain = _plain(value)
    fault = nested_fault(plain)
    return Fault(f"{fault.found} in the column {name!r}", fault.hint) if fault else plain


def _plain(value: Any) -> Any:
    """A value as JSON data, with a Fault for what has no exact form."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, TEXT_VALUES):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return Fault(f"the number {value}", "write null for a missing number")
    if value is None or isinstance(value, str | bool | int | float):
        return value
    return Fault(describe(value), "save the column as text, or remove it")
