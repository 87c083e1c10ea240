"""Reads files and JSON from outside. Every reader of the project uses it, so that the same limits hold everywhere.

A pipe, a device, a file that is too large, and JSON that is nested too deeply are refused instead of blocking the
program, exhausting its memory or ending in a RecursionError. Standard library only.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

MOST_BYTES = 2**30
"""Largest file that is read into memory as text."""
MOST_BYTES_OF_CONFIG = 2**26
"""Largest file of settings, of a model's config or of another document that is short."""
LONGEST_PROMPT, LONGEST_METADATA = 2**16, 2**20
"""Characters of a prompt, and of the metadata of an image as JSON."""
MOST_DEPTH = 100
"""Largest depth of lists and objects in each other."""


class UnreadableDocument(ValueError):
    """A file or JSON document outside the limits. The text continues a sentence: "it is a pipe, not a file"."""


class TooDeepError(UnreadableDocument):
    """Lists and objects in each other beyond the limit."""


def read_file(path: Path, most: int = MOST_BYTES_OF_CONFIG) -> bytes:
    """The content of a file. It never blocks.

    Raises OSError as `open` does, and UnreadableDocument for a pipe or device and for more than `most` bytes.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise UnreadableDocument("it is a pipe or device, not a file")
        content = file.read(most + 1)
    if len(content) > most:
        raise UnreadableDocument(f"it is larger than {most} bytes")
    return content


def parse_json(text: str | bytes, depth: int | None = MOST_DEPTH, **hooks: Callable[[Any], Any]) -> Any:
    """The value of a JSON document. `hooks` are those of `json.loads`.

    Raises TooDeepError for more than `depth` lists and objects in each other (None: more than Python can read), and
    ValueError for what is not JSON (JSONDecodeError), not UTF-8, or an integer with too many digits for Python.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8-sig")
    try:
        document = json.loads(text, **hooks)  # type: ignore[arg-type]
    except RecursionError as error:
        raise TooDeepError("its lists and objects are nested too deeply") from error
    level = [document]
    for _ in range(depth or 0):
        level = [inner for outer in level for inner in _children(outer)]
        if not level:
            break
    if level and depth is not None:
        raise TooDeepError(f"it has more than {depth} lists and objects in each other")
    return document


def read_json(path: Path, most: int = MOST_BYTES_OF_CONFIG) -> Any:
    """The JSON document in a file. Raises as `read_file` and `parse_json` do."""
    return parse_json(read_file(path, most))


def _children(value: Any) -> Sequence[Any]:
    """The lists and objects in a list or object."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [each for each in inner if isinstance(each, dict | list)]
