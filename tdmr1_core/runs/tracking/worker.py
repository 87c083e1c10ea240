"""The process that calls the trackers of a run: `python -P -m tdmr1_core.runs.tracking.worker`.

It reads one JSON object per line from stdin and writes one per line to stdout. Each tracker has a thread and a bounded
queue: one that blocks, fails or is slow delays no other, and a full queue drops what does not fit. At the end of the
input all trackers get `closing_limit` seconds together; then the process exits, whatever they do.

Input: first {"trackers", "folder", "project", "tags", "config", "closing_limit"}, then events {"kind", "step",
"values"} (numbers) or {"kind", "step", "name", "path"} (an image), or {"history": [events]}.
Output: {"tracker", "url"}, {"tracker", "failed"} and, at the end, {"tracker", "lost", "closed"}.
"""

from __future__ import annotations

import io
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tdmr1_core.runs.tracking.adapters import ADAPTERS, Adapter, RunFacts, accepted_name
from tdmr1_core.runs.tracking.state import OUTPUT, TRACKING, load_tracked_run, state_file
from tdmr1_rewards.texts.documents import parse_json
from tdmr1_rewards.texts.redaction import redact

Event = dict[str, Any]
Report = Callable[..., None]
QUEUED = 1000
"""Events that wait for one tracker."""
FORMER_LIMIT = 60.0
"""Seconds to wait for the process of the session before, which may still send: longer than it has to close."""


class Sender:
    """Sends the events of a run to one tracker, in a thread of its own."""

    def __init__(self, name: str, adapter: Adapter, path: Path, report: Report) -> None:
        self.name = name
        self._adapter, self._path, self._report = adapter, path, report
        self._queue: queue.Queue[list[Event] | None] = queue.Queue(QUEUED)
        self._dropped = self._refused = 0
        """Events that did not fit into the queue, and events that the tracker did not accept."""
        self._failed = False
        self._has_closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, events: list[Event]) -> None:
        """Queue events for the tracker, or count them as lost."""
        if not self._thread.is_alive():  # it could not be started
            return
        try:
            self._queue.put_nowait(events)
        except queue.Full:
            self._dropped += len(events)

    def close(self) -> None:
        """Ask for the end after all queued events."""
        with suppress(queue.Full):  # a tracker this slow is not closed
            self._queue.put_nowait(None)

    def wait(self, deadline: float) -> None:
        """Wait for the end until `deadline`, a time of `time.monotonic`, and report what is lost."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        lost = self._dropped + self._refused
        while not self._has_closed and not self._queue.empty():
            with suppress(queue.Empty):
                lost += len(self._queue.get_nowait() or ())
        self._report(tracker=self.name, lost=lost, closed=self._has_closed)

    def _run(self) -> None:
        run = self._adapter.run
        try:
            run.save(self._path)  # so that the next session has the same id, whatever happens in this one
            self._adapter.open()
            run.started = True
            run.save(self._path)
        except BaseException as error:  # some trackers call sys.exit
            self._fail("cannot be started", error)
            self._has_closed = True
            return
        if run.url:
            self._report(tracker=self.name, url=run.url)
        while (events := self._queue.get()) is not None:
            for event in events:
                self._send(event)
        try:
            self._adapter.finish()
        except BaseException as error:
            self._fail("cannot be closed", error)
        self._has_closed = True

    def _send(self, event: Event) -> None:
        run, kind, step = self._adapter.run, event["kind"], event["step"]
        if run.has(kind, step):
            return
        try:
            if "path" in event:
                self._adapter.log_image(accepted_name(event["name"]), Path(event["path"]), step)
            else:
                values = {accepted_name(name): value for name, value in event["values"].items()}
                self._adapter.log(values, step)
            run.sent[kind] = step
            run.save(self._path)
        except BaseException as error:
            self._refused += 1
            self._fail(f"does not accept the {kind} of iteration {step}", error)

    def _fail(self, what: str, error: BaseException) -> None:
        """Report the first failure; later ones are counted."""
        if not self._failed:
            self._failed = True
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            self._report(tracker=self.name, failed=redact(f"{what}: {reason}"))


def serve(lines: Iterable[bytes], report: Report) -> None:
    """Start the trackers that the first line names, and send them the events in all other lines."""
    lines = iter(lines)
    opening = parse_json(next(lines, b"{}"), None)
    if not opening:
        return
    folder = Path(opening["folder"])
    facts = RunFacts(folder, opening["project"], opening["tags"], opening["config"])
    senders = [
        Sender(name, ADAPTERS[name](load_tracked_run(folder, name), facts), state_file(folder, name), report)
        for name in opening["trackers"]
    ]
    for line in lines:
        try:
            event = parse_json(line, None)
        except ValueError:  # the run was killed while it wrote
            break
        for sender in senders:
            sender.put(event.get("history", [event]))
    deadline = time.monotonic() + opening["closing_limit"]
    for sender in senders:
        sender.close()
    for sender in senders:
        sender.wait(deadline)


class _RedactedLog(io.TextIOBase):
    """A text file without secrets."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8", errors="backslashreplace")

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        """Write the text, redacted."""
        self._file.write(redact(text))
        self._file.flush()
        return len(text)


def main() -> None:
    """Serve the run that started this process. Trackers cannot read stdin or write to stdout and stderr."""
    folder = Path(sys.argv[1]) / TRACKING
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock")
    with suppress(Timeout):
        lock.acquire(timeout=FORMER_LIMIT)
    channel, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", buffering=0)
    empty = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(empty, descriptor)
    log = _RedactedLog(folder / OUTPUT)
    sys.stdout = sys.stderr = log
    with suppress(OSError):
        os.nice(10)

    def report(**message: Any) -> None:
        with suppress(OSError):  # the run has ended
            answers.write(json.dumps(message).encode() + b"\n")

    from accelerate import PartialState

    PartialState(cpu=True)  # accelerate's trackers log through it
    serve(channel, report)
    log.flush()
    os._exit(0)  # exit handlers of trackers may wait for the network


if __name__ == "__main__":
    main()
