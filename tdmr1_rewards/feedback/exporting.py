"""Exports answers to JSON Lines or CSV, one answer per line."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tdmr1_rewards.errors import Tdmr1Error
from tdmr1_rewards.feedback.records import GivenAnswer
from tdmr1_rewards.feedback.store import FeedbackStore

COLUMNS = ("image_hash", "prompt", "answer", "person", "name", "time", "run", "step", "image", "question")
SUFFIXES = (".jsonl", ".csv")


def export_answers(store: FeedbackStore, path: Path) -> int:
    """Write all valid answers, oldest first, and return their number. `time` is ISO 8601 in UTC.

    Undone and replaced answers are omitted. An existing file is replaced atomically. Raises Tdmr1Error if the suffix of
    `path` is not .jsonl or .csv, or if the file cannot be written.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise Tdmr1Error(
            f"cannot export to {path}: the file name must end in .jsonl or .csv",
            "rename the file, for example to answers.csv",
            code="argument-invalid",
            values={"path": str(path), "expected": list(SUFFIXES)},
        )
    question = store.question()
    rows = [_row(store, given, question) for given in store.answers()]
    text = _csv(rows) if path.suffix.lower() == ".csv" else "".join(_json_line(row) for row in rows)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8", newline="")
        os.replace(temporary, path)
    except OSError as error:
        raise Tdmr1Error(
            f"cannot write {path}: {error.strerror}",
            "choose another file for --export",
            code="not-writable",
            values={"path": str(path), "reason": error.strerror},
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()
    return len(rows)


def _row(store: FeedbackStore, given: GivenAnswer, question: str) -> dict[str, Any]:
    timestamp = datetime.fromtimestamp(given.time, UTC).isoformat(timespec="milliseconds")
    values = (
        given.item.hash,
        given.item.prompt,
        given.answer,
        given.person,
        given.name,
        timestamp,
        given.run,
        given.step,
    )
    image = str(store.image_path(given.item.hash) or "")
    return dict(zip(COLUMNS, (*values, image, question), strict=True))


def _json_line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()
