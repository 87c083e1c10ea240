"""What a run folder records about a tracked run: its id, and the last iteration that the tracker has received."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tdmr1_core.durable_files import MALFORMED, replace_durable
from tdmr1_core.runs.jsonl import whole_number
from tdmr1_rewards.texts.documents import read_json
from tdmr1_rewards.texts.redaction import redact_texts

TRACKING, OUTPUT = "tracking", "output.txt"
"""The folder in a run folder with these records and the local files of trackers, and the file of what they print."""


@dataclass
class TrackedRun:
    """The run as one tracker knows it.

    `id` identifies it in the tracker; `name` is what the tracker shows. `started` is whether the tracker has accepted
    the run. `sent` has the last iteration that was sent, by the kind of event.
    """

    name: str
    id: str = field(default_factory=lambda: secrets.token_hex(16))
    started: bool = False
    url: str | None = None
    sent: dict[str, int] = field(default_factory=dict)

    def has(self, kind: str, step: int) -> bool:
        """Whether the tracker has received this event, so that it is not sent again."""
        return step <= self.sent.get(kind, -1)

    def save(self, path: Path) -> None:
        """Write the record, without secrets. Raises OSError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_durable(path, json.dumps(redact_texts(asdict(self)), indent=1).encode())


def state_file(folder: Path, tracker: str) -> Path:
    """The file of a tracker in a run folder."""
    return folder / TRACKING / f"{tracker}.json"


def load_tracked_run(folder: Path, tracker: str) -> TrackedRun:
    """The record of a tracker; that of a new tracked run if there is none, or if it cannot be read."""
    new = TrackedRun(folder.name)
    new.name = f"{folder.name}-{new.id[:6]}"
    try:
        return _parse(read_json(state_file(folder, tracker)))
    except (*MALFORMED, OSError):
        return new


def _parse(row: Mapping[str, object]) -> TrackedRun:
    """Raises one of MALFORMED for what `save` does not write."""
    name, identifier, url, sent = row["name"], row["id"], row["url"], row["sent"]
    texts = isinstance(name, str) and isinstance(identifier, str) and isinstance(url, str | None)
    if not texts or not isinstance(sent, Mapping):
        raise TypeError("not a tracked run")
    steps = {str(kind): whole_number(step) for kind, step in sent.items()}
    return TrackedRun(str(name), str(identifier), row["started"] is True, None if url is None else str(url), steps)
