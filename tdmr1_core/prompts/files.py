"""Reads prompt files: text (.txt), JSON (.jsonl, .json) and tables with a header (.csv, .tsv, .parquet).

Nothing in a file is guessed. A prompt is a string with at least one visible character. Anything else is an error that
names the place in the file and what was found there.
"""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from tdmr1_core.errors import Tdmr1Error, shorten, warn
from tdmr1_core.prompts.prompt import Prompt

FORMATS = "prompt files are .txt (one prompt per line), .jsonl, .json, .csv, .tsv or .parquet"
KEY = "prompt"
"""The key or column of the prompt."""
MAX_LISTED = 5
"""At most this many places are listed in a message."""
PARQUET_INSTALL = "pip install 'tdmr1[parquet]'"


@dataclass(frozen=True)
class Entry:
    """One entry of a prompt file: its place, such as "line 3", its prompt as it was found, and its metadata."""

    place: str
    value: Any
    metadata: Mapping[str, Any]


class _Missing:
    """The prompt of an entry that has none; `found` says what it has instead."""

    def __init__(self, found: str) -> None:
        self.found = found


def read_prompt_file(path: Path) -> list[Prompt]:
    """The prompts of a file; a line, item or row each. A file without a suffix is read as .txt.

    Surrounding blanks are removed in a .txt file and kept elsewhere. Warns of surrounding blanks and of prompts that
    occur more than once. Raises Tdmr1Error for an unknown suffix, for content that contradicts the suffix, for a file
    that cannot be read or contains no prompts, and for entries that are not prompts.
    """
    read = READERS.get(path.suffix.lower())
    if read is None:
        raise Tdmr1Error(
            f"the prompt file {path} has the unknown suffix {path.suffix!r}",
            FORMATS,
            code="prompts-unreadable",
            values={"path": str(path), "suffix": path.suffix},
        )
    entries = list(read(path))
    if not entries:
        raise Tdmr1Error(
            f"the prompt file {path} contains no prompts",
            "write at least one prompt",
            code="prompts-empty",
            values={"path": str(path)},
        )
    _check(entries, path)
    is_text = read is _read_text
    _warn_of_blanks(entries, path, "removed" if is_text else "kept")
    prompts = [Prompt(entry.value.strip() if is_text else entry.value, entry.metadata) for entry in entries]
    _warn_of_duplicates(entries, prompts, path)
    return prompts


def _read_text(path: Path) -> Iterator[Entry]:
    first = True
    for number, line in _lines(path):
        place, shown = f"line {number}", line.strip()
        if "\0" in line:
            raise _unreadable(path, f"it is not UTF-8 text (at {place})", "save it as UTF-8")
        if "\r" in line:
            _refuse(path, f"a carriage return without a line feed in {place}", "save it with the line endings of Unix")
        if _is_json(shown) or (first and shown.startswith(("{", "["))):
            hint = "give JSON the suffix .jsonl or .json, which a prompt that starts with { or [ needs too"
            _refuse(path, f"what looks like JSON in {place}", hint)
        if "\t" in shown:
            _refuse(path, f"a tab in {place}", "give a table the suffix .tsv, and its columns a header")
        if first and KEY in _cells(shown):
            _refuse(path, f"the header of a table in {place}", "give a table the suffix .csv or .tsv")
        first = False
        yield Entry(place, line, {})


def _is_json(line: str) -> bool:
    """Whether a line is a JSON object or list."""
    if not line.startswith(("{", "[")):
        return False
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _cells(line: str) -> list[str]:
    """The cells of the first line of a table with commas, in lower case."""
    return [cell.strip().strip('"').lower() for cell in line.split(",")]


def _read_jsonl(path: Path) -> Iterator[Entry]:
    for number, line in _lines(path):
        place = f"line {number}"
        try:
            yield _of_json(place, _parse_json(line))
        except (ValueError, RecursionError) as error:
            yield Entry(place, _Missing(f"no JSON object ({_reason(error)})"), {})


def _read_json(path: Path) -> Iterator[Entry]:
    """A list of strings or objects, or one object per line."""
    text = _content(path)
    try:
        document = _parse_json(text) if text.strip() else []
    except (ValueError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data" and text.lstrip().startswith("{"):
            yield from _read_jsonl(path)
            return
        raise _unreadable(path, f"it is not JSON: {_reason(error)}", "correct it there") from error
    if isinstance(document, dict) and KEY in document:
        document = [document]
    if not isinstance(document, list):
        _refuse(path, f"{_describe(document)}", 'write a list: ["…", "…"] or [{"prompt": "…"}, …]')
    for number, item in enumerate(document, 1):
        place = f"item {number}"
        yield Entry(place, item, {}) if isinstance(item, str) else _of_json(place, item)


def _of_json(place: str, item: Any) -> Entry:
    """The entry of a JSON value, which must be an object with the key `prompt`. The object is its metadata."""
    if not isinstance(item, dict):
        return Entry(place, _Missing(_describe(item)), {})
    if KEY not in item:
        keys = ", ".join(map(repr, list(item)[:MAX_LISTED])) or "none"
        return Entry(place, _Missing(f"an object without the key {KEY!r} (its keys: {keys})"), {})
    return Entry(place, item[KEY], item)


def _parse_json(text: str) -> Any:
    """A JSON value. Raises ValueError also for a key that occurs twice, and for NaN and Infinity."""

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"the key {twice!r} occurs twice")
        return dict(pairs)

    def no_constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is not JSON")

    return json.loads(text, object_pairs_hook=no_duplicates, parse_constant=no_constant)


def _read_csv(path: Path) -> Iterator[Entry]:
    return _read_table(path, ",")


def _read_tsv(path: Path) -> Iterator[Entry]:
    return _read_table(path, "\t")


def _read_table(path: Path, delimiter: str) -> Iterator[Entry]:
    """The rows of a table. The column `prompt` may be capitalized; the other cells are metadata, unless empty."""
    reader = csv.reader(io.StringIO(_content(path), newline=""), delimiter=delimiter, strict=True)
    columns: list[str] | None = None
    start = 1
    try:
        for row in reader:
            place, start = f"line {start}", reader.line_num + 1
            if not any(cell.strip() for cell in row):
                continue
            if columns is None:
                columns = _header(path, row)
                continue
            if len(row) != len(columns):
                cells_found = "1 cell" if len(row) == 1 else f"{len(row)} cells"
                found = f"{cells_found} in {place}, but {len(columns)} columns"
                _refuse(path, found, "write a cell that contains the delimiter, quotes or line ends between quotes")
            cells = dict(zip(columns, row, strict=True))
            yield Entry(place, cells[KEY], {name: cell for name, cell in cells.items() if cell})
    except csv.Error as error:
        raise _unreadable(
            path, f"it is not a table: {error} (at line {start})", 'double the quotes inside a quoted cell: ""'
        ) from error


def _header(path: Path, cells: Sequence[str]) -> list[str]:
    """The names of the columns, with that of the prompt in lower case."""
    names = [cell.strip() for cell in cells]
    columns = [KEY if name.lower() == KEY else name for name in names]
    if columns.count(KEY) != 1:
        listed = ", ".join(map(repr, names[:MAX_LISTED]))
        count = "no column" if KEY not in columns else "more than one column"
        hint = "name the column of the prompts `prompt`; commas separate cells in .csv, tabs in .tsv"
        _refuse(path, f"a header with {count} {KEY!r} (its columns: {listed})", hint)
    if twice := next((name for name in columns if columns.count(name) > 1), None):
        _refuse(path, f"a header with two columns {twice!r}", "rename one of them")
    if "" in columns:
        _refuse(path, "a column without a name", "name it, or remove it (in pandas: to_csv(…, index=False))")
    return columns


def _read_parquet(path: Path) -> Iterator[Entry]:
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
    try:
        table = parquet.read_table(path)
        columns = _header(path, table.column_names)
        rows = table.rename_columns(columns).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise _unreadable(path, f"it is not a Parquet file: {_reason(error)}", "save it again") from error
    for number, row in enumerate(rows, 1):
        value = row[KEY]
        yield Entry(f"row {number}", value, {name: cell for name, cell in row.items() if cell is not None})


READERS: dict[str, Callable[[Path], Iterator[Entry]]] = {
    "": _read_text,
    ".txt": _read_text,
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
}
"""The readers by suffix."""


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    r"""The lines with at least one visible character, with their numbers from 1. Lines end at \n or \r\n."""
    for number, line in enumerate(_content(path).split("\n"), 1):
        if line.strip():
            yield number, line.removesuffix("\r")


def _content(path: Path) -> str:
    """The text of a file, without a byte-order mark at its start."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _unreadable(path, f"it is not UTF-8 text (at byte {error.start})", "save it as UTF-8") from error
    except OSError as error:
        raise _unreadable(path, str(error.strerror), "check its permissions") from error


def _check(entries: Sequence[Entry], path: Path) -> None:
    """Raise one Tdmr1Error that names the entries that are not prompts."""
    wrong = [(entry.place, found) for entry in entries if (found := find_fault(entry.value))]
    if not wrong:
        return
    listed = "; ".join(f"{place} has {found}" for place, found in wrong[:MAX_LISTED])
    listed += "; …" if len(wrong) > MAX_LISTED else ""
    count = "1 entry is not a prompt" if len(wrong) == 1 else f"{len(wrong)} entries are not prompts"
    raise Tdmr1Error(
        f"{count} in {path}: {listed}",
        "a prompt is a string that is not empty; correct or remove these entries",
        code="prompt-invalid",
        values={"path": str(path), "places": [place for place, _ in wrong], "found": [found for _, found in wrong]},
    )


def find_fault(value: Any) -> str | None:
    """What makes a value not a prompt; None for a prompt."""
    if not isinstance(value, str):
        return value.found if isinstance(value, _Missing) else _describe(value)
    if not any(_is_visible(character) for character in value):
        return "an empty string" if not value else "a string without a visible character"
    if "\0" in value:
        return "a string with a NUL character"
    if "\ufeff" in value:
        return "a string with a byte-order mark inside"
    if any("\ud800" <= character <= "\udfff" for character in value):
        return "a string with half of a surrogate pair"
    return None


def _is_visible(character: str) -> bool:
    """Whether a character is neither white space nor a control or format character."""
    return unicodedata.category(character)[0] not in "ZC"


def _describe(value: Any) -> str:
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


def _warn_of_blanks(entries: Sequence[Entry], path: Path, consequence: str) -> None:
    places = [entry.place for entry in entries if entry.value != entry.value.strip()]
    if places:
        warn(
            f"{_count(len(places), 'has', 'have')} blanks at the start or end, which are {consequence}: {path}, "
            f"{_listed(places)}",
            code="prompts-doubtful",
            path=str(path),
            places=places,
        )


def _warn_of_duplicates(entries: Sequence[Entry], prompts: Sequence[Prompt], path: Path) -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for entry, prompt in zip(entries, prompts, strict=True):
        places[prompt.text].append(entry.place)
    repeated = {text: found for text, found in places.items() if len(found) > 1}
    if repeated:
        text, found = next(iter(repeated.items()))
        warn(
            f"{_count(len(repeated), 'occurs', 'occur')} more than once, such as {shorten(text)!r}: {path}, "
            f"{_listed(found)}",
            code="prompts-doubtful",
            path=str(path),
            prompts=len(repeated),
            places=found,
        )


def _count(number: int, singular: str, plural: str) -> str:
    return f"1 prompt {singular}" if number == 1 else f"{number} prompts {plural}"


def _listed(places: Sequence[str]) -> str:
    return ", ".join(places[:MAX_LISTED]) + (", …" if len(places) > MAX_LISTED else "")


def _reason(error: BaseException) -> str:
    """The text of an exception on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _unreadable(path: Path, reason: str, hint: str) -> Tdmr1Error:
    return Tdmr1Error(
        f"the prompt file {path} cannot be read: {reason}",
        hint,
        code="prompts-unreadable",
        values={"path": str(path), "reason": reason},
    )


def _refuse(path: Path, found: str, hint: str) -> NoReturn:
    """Raise the error for content that contradicts the suffix of the file."""
    suffix = f"has the suffix {path.suffix}" if path.suffix else "has no suffix"
    raise Tdmr1Error(
        f"the prompt file {path} {suffix}, but contains {found}",
        hint,
        code="prompts-unreadable",
        values={"path": str(path), "suffix": path.suffix, "found": found},
    )
