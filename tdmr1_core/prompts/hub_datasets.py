"""Reads prompts from a dataset of the Hugging Face Hub: `hf:OWNER/DATASET:COLUMN[@SPLIT]`.

    hf:OWNER/DATASET:COLUMN                  the split `train`, or the only split
    hf:OWNER/DATASET:COLUMN@test             another split, or a part of one: COLUMN@train[:1000]
    hf:OWNER/DATASET/CONFIG:COLUMN           a configuration (subset) of the dataset
    hf:OWNER/DATASET@REVISION:COLUMN         a commit, tag or branch

The other columns are metadata, as those of a Parquet file are. Columns of images and of other values that JSON does not
have are omitted. The package `datasets` (extra `hf`) downloads a dataset once and keeps it in its cache.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tdmr1_core.errors import Tdmr1Error, close_match_hint, warn
from tdmr1_core.prompts.entries import MAX_LISTED, Entry, Fault, quoted
from tdmr1_core.prompts.files import find_fault, prompts_of
from tdmr1_core.prompts.prompt import Prompt
from tdmr1_core.prompts.tables import cells
from tdmr1_rewards.errors import one_line

INSTALL = "pip install 'tdmr1[hf]'"
FORM = "write it like hf:OWNER/DATASET:COLUMN, or hf:OWNER/DATASET:COLUMN@SPLIT"
PATTERN = re.compile(
    r"hf:(?P<name>[\w.-]+/[\w.-]+)(?:/(?P<config>[^:@/]+))?(?:@(?P<revision>[^:@]+))?"
    r":(?P<column>[^@]+)(?:@(?P<split>[\w.+-]+(?:\[[\d:%-]*\])?))?"
)
COMMIT = re.compile(r"[0-9a-f]{40}")
DEFAULT_SPLIT = "train"
MOST_ROWS = 1_000_000
"""Rows of a split that are read. A part of a larger split can be named."""


@dataclass(frozen=True)
class DatasetSource:
    """A parsed source. `source` is the text; a part that is not named is None."""

    source: str
    name: str
    column: str
    config: str | None = None
    revision: str | None = None
    split: str | None = None

    @classmethod
    def parse(cls, source: str) -> DatasetSource:
        """Parse a text that begins with `hf:`. Raises Tdmr1Error if it has not the form of a source."""
        found = PATTERN.fullmatch(source)
        if found is None:
            raise _unknown(source, f"{source!r} does not name a column of a dataset", FORM)
        return cls(source, **found.groupdict())


def read_dataset(source: str) -> tuple[list[Prompt], str | None]:
    """The prompts of a source, and the commit of the dataset if it is known. Downloads what is not in the cache.

    Rows without a prompt are omitted, with a warning. Warns of prompts that occur more than once. Raises Tdmr1Error if
    `datasets` is missing, for a dataset, configuration, revision, split or column that does not exist, if the hub
    cannot be reached and the dataset is not in the cache, and for a split of more than `MOST_ROWS` rows.
    """
    parsed = DatasetSource.parse(source)
    try:
        import datasets
    except ImportError as error:
        raise Tdmr1Error(
            f"the prompts {source} need the package datasets, which is not installed",
            INSTALL,
            code="dependency-missing",
            values={"package": "datasets", "source": source},
        ) from error
    if os.path.exists(parsed.name):  # `datasets` would read it in place of the dataset of the hub
        hint = "run the command in another folder, or name a prompt file"
        raise _unknown(source, f"the path {parsed.name} in the current folder hides the dataset of the hub", hint)
    builder = _prepare(parsed, datasets)
    commit = builder.hash if COMMIT.fullmatch(builder.hash or "") else None
    if parsed.revision is not None and COMMIT.fullmatch(parsed.revision) and commit != parsed.revision:
        found = f"commit {commit}" if commit else "another commit"
        raise Tdmr1Error(
            f"the hub cannot be reached, and the cache has {found} of the dataset {parsed.name}, not {parsed.revision}",
            "connect to the hub, or name the other commit",
            code="hub-unavailable",
            values={"source": source, "commit": commit},
        )
    table = _read_split(parsed, builder)
    return prompts_of(list(_entries(parsed, table)), Path(source)), commit


def _prepare(parsed: DatasetSource, datasets: Any) -> Any:
    """The builder of a dataset, with its data in the cache. Raises Tdmr1Error if it cannot be downloaded or read."""
    values = {"source": parsed.source, "dataset": parsed.name}
    try:
        with _bars_on_terminals(datasets):
            builder = datasets.load_dataset_builder(parsed.name, parsed.config, revision=parsed.revision)
            builder.download_and_prepare()
        return builder
    except datasets.exceptions.DatasetNotFoundError as error:
        revision = f" at revision {parsed.revision}" if parsed.revision else ""
        raise Tdmr1Error(
            f"the hub has no dataset {parsed.name}{revision}, or refuses access: {one_line(str(error))}",
            "check the name; log in with `hf auth login` if the dataset is private or gated",
            code="hub-denied",
            values=values,
        ) from error
    except ConnectionError as error:
        raise Tdmr1Error(
            f"the hub cannot be reached, and the dataset {parsed.name} is not in the cache",
            "connect to the hub and try again; if HF_HUB_OFFLINE or HF_DATASETS_OFFLINE is set, remove it",
            code="hub-unavailable",
            values=values,
        ) from error
    except Exception as error:  # of many types: an unknown configuration, damaged files, a full disk
        raise Tdmr1Error(
            f"the dataset {parsed.name} cannot be read: {one_line(str(error)) or type(error).__name__}",
            "name a configuration like hf:OWNER/DATASET/CONFIG:COLUMN if it has several; else see what `datasets` says",
            code="prompts-unreadable",
            values={**values, "reason": type(error).__name__},
        ) from error


@contextmanager
def _bars_on_terminals(datasets: Any) -> Iterator[None]:
    """Within the context, progress bars of downloads are shown on terminals only."""
    hidden = not sys.stderr.isatty() and not datasets.are_progress_bars_disabled()
    if hidden:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if hidden:
            datasets.enable_progress_bars()


def _read_split(parsed: DatasetSource, builder: Any) -> Any:
    """The split of a source as a table of Arrow, with the columns that may be read."""
    splits = list(builder.info.splits or {})
    name = parsed.split or (splits[0] if len(splits) == 1 else DEFAULT_SPLIT)
    if name.partition("[")[0] not in splits:
        what = f"{parsed.name} has no split {name!r} (its splits: {quoted(splits) or 'none'})"
        hint = f"{close_match_hint(name.partition('[')[0], splits)}; name a split like {parsed.column}@SPLIT"
        raise _unknown(parsed.source, what, hint, splits=splits)
    try:
        split = builder.as_dataset(split=name)
    except Exception as error:  # of many types: a part of a split that does not exist
        raise _unknown(
            parsed.source, f"{name!r} cannot be read: {one_line(str(error))}", FORM, splits=splits
        ) from error
    texts = [column for column, feature in split.features.items() if _is_text(feature)]
    if parsed.column not in texts:
        found = "is not text" if parsed.column in split.features else "does not exist"
        what = f"the column {parsed.column!r} of {parsed.name} {found} (its columns of text: {quoted(texts) or 'none'})"
        raise _unknown(parsed.source, what, close_match_hint(parsed.column, texts), columns=texts)
    if len(split) > MOST_ROWS:
        raise Tdmr1Error(
            f"the split {name} of {parsed.name} has {len(split)} rows, more than {MOST_ROWS}",
            f"name a part of it like {parsed.column}@{name}[:{MOST_ROWS}]",
            code="prompts-unreadable",
            values={"source": parsed.source, "rows": len(split), "limit": MOST_ROWS},
        )
    plain = [column for column, feature in split.features.items() if _is_plain(feature)]
    return split.select_columns(plain).with_format("arrow")[:]


def _is_text(feature: Any) -> bool:
    return getattr(feature, "dtype", None) in ("string", "large_string")


def _is_plain(feature: Any) -> bool:
    """Whether the values of a feature can be metadata: texts, numbers, dates, and lists and objects of them."""
    if isinstance(feature, Mapping):
        return all(map(_is_plain, feature.values()))
    if isinstance(feature, list | tuple):
        return all(map(_is_plain, feature))
    if (inner := getattr(feature, "feature", None)) is not None:
        return _is_plain(inner)
    kind = type(feature).__name__
    return kind == "ClassLabel" or (kind == "Value" and "binary" not in str(feature.dtype))


def _entries(parsed: DatasetSource, table: Any) -> Iterator[Entry]:
    """The rows that have a prompt. Columns with a value that is not exact as JSON are omitted. Warns of both."""
    columns = {name: cells(name, column) for name, column in zip(table.column_names, table.columns, strict=True)}
    prompts = columns[parsed.column]
    for name, values in [each for each in columns.items() if each[0] != parsed.column]:
        if fault := next((value for value in values if isinstance(value, Fault)), None):
            warn(
                f"{parsed.source}: the column {name!r} is omitted from the metadata, because it has {fault.found}",
                code="prompts-doubtful",
                path=parsed.source,
                places=[name],
            )
            del columns[name]
    faulty = [(number, found) for number, value in enumerate(prompts, 1) if (found := find_fault(value))]
    if faulty:
        shown = "; ".join(f"row {number} has {found}" for number, found in faulty[:MAX_LISTED])
        warn(
            f"{len(faulty)} of {len(prompts)} rows of {parsed.source} are omitted, because they have no prompt: {shown}"
            + ("; …" if len(faulty) > MAX_LISTED else ""),
            code="prompts-doubtful",
            path=parsed.source,
            places=[f"row {number}" for number, _ in faulty],
        )
    omitted = {number for number, _ in faulty}
    for number, row in enumerate(zip(*columns.values(), strict=True), 1):
        if number not in omitted:
            metadata = {name: value for name, value in zip(columns, row, strict=True) if value is not None}
            yield Entry(f"row {number}", metadata[parsed.column], metadata)


def _unknown(source: str, message: str, hint: str, **values: Any) -> Tdmr1Error:
    return Tdmr1Error(message, hint, code="prompts-unknown", values={"name": source, **values})
