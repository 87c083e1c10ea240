"""Reads prompt files: text (.txt), JSON (.jsonl, .json) and tables with a header (.csv, .tsv, .parquet).

Nothing in a file is guessed. A prompt is a string with at least one visible character. Anything else is an error that
names the place in the file and what was found there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tdmr1_core.errors import Tdmr1Error, shorten, warn
from tdmr1_core.prompts.entries import LONE_SURROGATE, MAX_LISTED, Entry, Fault, describe, listed
from tdmr1_core.prompts.json_files import read_json, read_jsonl
from tdmr1_core.prompts.prompt import Prompt
from tdmr1_core.prompts.tables import read_csv, read_parquet, read_tsv
from tdmr1_core.prompts.text_files import read_text
from tdmr1_rewards.builtin.visible import has_visible, strip_blanks
from tdmr1_rewards.texts.documents import LONGEST_PROMPT

FORMATS = "prompt files are .txt (one prompt per line), .jsonl, .json, .csv, .tsv or .parquet"
READERS: dict[str, Callable[[Path], Iterator[Entry]]] = {
    "": read_text,
    ".txt": read_text,
    ".jsonl": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".parquet": read_parquet,
}
"""The readers by suffix."""


def read_prompt_file(path: Path) -> list[Prompt]:
    """The prompts of a file; a line, item or row each. A file without a suffix is read as .txt.

    Surrounding blanks and zero-width characters are removed in a .txt file and kept elsewhere. Warns of them, and of
    prompts that occur more than once. Raises Tdmr1Error for an unknown suffix, for content that contradicts the suffix,
    for a file that cannot be read or contains no prompts, and for entries that are not prompts.
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
    if read is not read_text:
        return prompts_of(entries, path)
    return [replace(prompt, text=strip_blanks(prompt.text)) for prompt in prompts_of(entries, path, "removed")]


def prompts_of(entries: Sequence[Entry], path: Path, blanks: str = "kept") -> list[Prompt]:
    """The prompts of entries; `path` is where they are from, and `blanks` what happens to surrounding blanks.

    Warns of blanks, and of prompts that occur more than once. Raises Tdmr1Error if there are none, and for entries that
    are not prompts.
    """
    if not entries:
        raise Tdmr1Error(
            f"the prompt file {path} contains no prompts",
            "write at least one prompt",
            code="prompts-empty",
            values={"path": str(path)},
        )
    _check(entries, path)
    _warn_of_blanks(entries, path, blanks)
    _warn_of_duplicates(entries, path)
    return [Prompt(entry.value, entry.metadata, path, entry.place) for entry in entries]


def find_fault(value: Any) -> str | None:
    """What makes a value not a prompt; None for a prompt."""
    if not isinstance(value, str):
        return value.found if isinstance(value, Fault) else describe(value)
    if not has_visible(value):
        return "a string without a visible character" if value else "an empty string"
    if "\0" in value:
        return "a string with a NUL character"
    if "\ufeff" in value:
        return "a string with a byte-order mark inside"
    if LONE_SURROGATE.search(value):
        return "a string with half of a surrogate pair"
    if len(value) > LONGEST_PROMPT:
        return f"a string of {len(value)} characters, more than {LONGEST_PROMPT}"
    return None


def _check(entries: Sequence[Entry], path: Path) -> None:
    """Raise one Tdmr1Error that names the entries that are not prompts."""
    wrong = [(entry, found) for entry in entries if (found := find_fault(entry.value))]
    if not wrong:
        return
    shown = "; ".join(f"{entry.place} has {found}" for entry, found in wrong[:MAX_LISTED])
    shown += "; …" if len(wrong) > MAX_LISTED else ""
    count = "1 entry is not a prompt" if len(wrong) == 1 else f"{len(wrong)} entries are not prompts"
    hints = (entry.value.hint for entry, _ in wrong if isinstance(entry.value, Fault))
    raise Tdmr1Error(
        f"{count} in {path}: {shown}",
        next(filter(None, hints), "a prompt is a string that is not empty; correct or remove these entries"),
        code="prompt-invalid",
        values={
            "path": str(path),
            "places": [entry.place for entry, _ in wrong],
            "found": [found for _, found in wrong],
        },
    )


def _warn_of_blanks(entries: Sequence[Entry], path: Path, consequence: str) -> None:
    places = [entry.place for entry in entries if entry.value != strip_blanks(entry.value)]
    if places:
        warn(
            f"{_count(len(places), 'has', 'have')} blanks or zero-width characters at the start or end, which are "
            f"{consequence}: {path}, {listed(places)}",
            code="prompts-doubtful",
            path=str(path),
            places=places,
        )


def _warn_of_duplicates(entries: Sequence[Entry], path: Path) -> None:
    """Warn of prompts that occur more than once; surrounding blanks make no difference."""
    places: dict[str, list[str]] = defaultdict(list)
    for entry in entries:
        places[strip_blanks(entry.value)].append(entry.place)
    repeated = {text: found for text, found in places.items() if len(found) > 1}
    if repeated:
        text, found = next(iter(repeated.items()))
        warn(
            f"{_count(len(repeated), 'occurs', 'occur')} more than once, such as {shorten(text)!r}: {path}, "
            f"{listed(found)}",
            code="prompts-doubtful",
            path=str(path),
            prompts=len(repeated),
            places=found,
        )


def _count(number: int, singular: str, plural: str) -> str:
    return f"1 prompt {singular}" if number == 1 else f"{number} prompts {plural}"
