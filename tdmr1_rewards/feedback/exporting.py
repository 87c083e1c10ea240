"""Answers as a file that other tools read: JSON lines or CSV, one answer a line."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tdmr1_rewards.errors import Tdmr1Error
from tdmr1_rewards.feedback.records import GivenAnswer
from tdmr1_rewards.feedback.store import FeedbackStore

COLUMNS = ("image_hash", "prompt", "answer", "person", "name", "time", "run", "step", "image")
SUFFIXES = (".jsonl", ".csv")


def export_answers(store: FeedbackStore, path: Path) -> int:
    """Write every standing answer, the oldest first, and return how many there are; `time` is ISO 8601 in UTC.

    A file that is there is replaced, whole. Raises Tdmr1Error for another suffix and where it can't be written.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise Tdmr1Error(f"{path} is neither .jsonl nor .csv", "name a file with one of these endings")
    rows = [_row(store, given) for given in store.answers()]
    text = _csv(rows) if path.suffix.lower() == ".csv" else "".join(_json_line(row) for row in rows)
    building = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        building.write_text(text, encoding="utf-8", newline="")
        os.replace(building, path)
    except OSError as error:
        raise Tdmr1Error(f"{path} can't be written: {error.strerror}", "choose another --export") from error
    return len(rows)


def _row(store: FeedbackStore, given: GivenAnswer) -> dict[str, Any]:
    when = datetime.fromtimestamp(given.time, UTC).isoformat(timespec="milliseconds")
    values = (given.item.hash, given.item.prompt, given.answer, given.person, given.name, when, given.run, given.step)
    return dict(zip(COLUMNS, (*values, str(store.image_path(given.item.hash) or "")), strict=True))


def _json_line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()
