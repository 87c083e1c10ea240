"""Prints as JSON what a tracker has stored: `read_tracked.py TRACKER FOLDER [NAME]`, run in the tracker's environment.

The document has {"runs": {id or name: {"tags", "config", "rows": [{name: value}], "images": [step]}}}. A row has the
step of its numbers.
"""

from __future__ import annotations

import json
import re
import struct
import sys
import zipfile
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


def read_mlflow(project: str) -> dict[str, Any]:
    """The runs of an experiment, by id."""
    from mlflow import MlflowClient

    client, runs = MlflowClient(), {}
    experiment = client.get_experiment_by_name(project)
    for each in client.search_runs([experiment.experiment_id]):
        run = runs[each.info.run_id] = new_run()
        run["tags"] = [tag for tag, value in each.data.tags.items() if value == "true"]
        run["config"] = {name: int(value) if value.isdecimal() else value for name, value in each.data.params.items()}
        for name in each.data.metrics:
            for metric in client.get_metric_history(each.info.run_id, name):
                add_row(run, metric.step, {name: metric.value})
        for file in client.list_artifacts(each.info.run_id, "images"):
            if file.path.endswith(".png"):
                run["images"].append(int(re.split(r"\W", Path(file.path).name)[2]))
    return runs


def read_comet(folder: Path) -> dict[str, Any]:
    """The offline experiments in `folder`, by key. Sessions of one experiment are joined."""
    runs: dict[str, Any] = {}
    for file in sorted(folder.glob("comet/*.zip"), key=lambda file: file.stat().st_mtime):
        run = runs.setdefault(file.name.partition("-")[0], new_run())
        with zipfile.ZipFile(file) as archive:
            run["tags"] = json.loads(archive.read("experiment.json"))["tags"]
            messages = [json.loads(line) for line in archive.read("messages.json").splitlines()]
        for message in messages:
            content = message["payload"]
            if message["type"] == "metric_msg":
                metric = content["metric"]
                add_row(run, metric["step"], {metric["metricName"]: metric["metricValue"]})
            elif message["type"] == "parameter_msg":
                run["config"][content["param"]["paramName"]] = content["param"]["paramValue"]
            elif message["type"] == "file_upload":
                run["images"].append(content["additional_params"]["step"])
    return runs


def read_swanlab(folder: Path) -> dict[str, Any]:
    """The offline experiments in `folder`, by id. Sessions of one experiment are joined."""
    import yaml
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record

    runs: dict[str, Any] = {}
    for file in sorted(folder.glob("swanlog/*/*.swanlab")):
        run = runs.setdefault(file.stem, new_run())
        config = yaml.safe_load((file.parent / "files" / "config.yaml").read_text())
        run["config"] |= {name: item["value"] for name, item in config.items()}
        for content in leveldb_records(file.read_bytes()):
            record = Record.FromString(content)
            if record.HasField("start"):
                run["tags"] = list(record.start.tags)
            elif record.HasField("scalar"):
                add_row(run, record.scalar.step, {record.scalar.key: record.scalar.value.number})
            elif record.HasField("media"):
                run["images"].append(record.media.step)
    return runs


READERS = {"wandb": read_wandb, "swanlab": read_swanlab, "comet": read_comet}
"""The readers of files in a folder; the others read a project of a store."""

if __name__ == "__main__":
    tracker, place = sys.argv[1:]
    if tracker in READERS:
        found = READERS[tracker](Path(place))
    else:
        found = read_mlflow(place) if tracker == "mlflow" else read_trackio(place)
    print(json.dumps({"runs": found}))
