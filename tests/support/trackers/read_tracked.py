"""Prints as JSON what a tracker has stored: `read_tracked.py TRACKER FOLDER [NAME]`, run in the tracker's environment.

The document has {"runs": {id or name: {"tags", "config", "rows": [{name: value}], "images": [step]}}}. A row has the
step of its numbers.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEADER = 32768, 7
"""Bytes of a block of a LevelDB log, and of the header of a record in it."""


def new_run() -> dict[str, Any]:
    return {"tags": [], "config": {}, "rows": [], "images": []}


def read_wandb(folder: Path) -> dict[str, Any]:
    """The offline runs in `folder`, by id. Sessions of one run are joined, in the order of their names."""
    from wandb.proto import wandb_internal_pb2

    runs: dict[str, Any] = {}
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        run = new_run()
        for content in leveldb_records(file.read_bytes()):
            record = wandb_internal_pb2.Record.FromString(content)
            if record.HasField("run") and record.run.run_id:
                run = runs.setdefault(record.run.run_id, run)
                run["tags"] = list(record.run.tags)
                run["config"] |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            if record.HasField("config"):
                run["config"] |= {item.key: json.loads(item.value_json) for item in record.config.update}
            if record.HasField("history"):
                row: dict[str, Any] = {}
                for item in record.history.item:
                    name, *below = item.nested_key or [item.key]
                    value = json.loads(item.value_json)
                    row[name] = row.get(name, {}) | {below[0]: value} if below else value
                add_row(run, row.pop("iteration"), row)
    return runs


def leveldb_records(content: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log after its header of seven bytes."""
    parts: list[bytes] = []
    place = HEADER
    while place + HEADER <= len(content):
        if BLOCK - place % BLOCK < HEADER:
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        place += HEADER
        if kind == 0:
            return
        parts.append(content[place : place + length])
        place += length
        if kind in (1, 4):  # whole, or the last part
            yield b"".join(parts)
            parts = []


def add_row(run: dict[str, Any], step: int, row: dict[str, Any]) -> None:
    """Add the numbers of a step; a value that is a table is an image."""
    numbers = {name: value for name, value in row.items() if isinstance(value, int | float) and name[0] != "_"}
    if any(isinstance(value, dict) and "_type" in value for value in row.values()):
        run["images"].append(step)
    if numbers:
        run["rows"].append({"step": step, **numbers})


def read_trackio(project: str) -> dict[str, Any]:
    """The runs of a project, by name."""
    from trackio.sqlite_storage import SQLiteStorage

    runs = {}
    for name in SQLiteStorage.get_runs(project):
        run = runs[name] = new_run()
        run["config"] = SQLiteStorage.get_run_config(project, name)
        for row in SQLiteStorage.get_logs(project, name):
            add_row(run, row.pop("step"), row)
    return runs


if __name__ == "__main__":
    tracker, place = sys.argv[1:]
    found = read_wandb(Path(place)) if tracker == "wandb" else read_trackio(place)
    print(json.dumps({"runs": found}))
