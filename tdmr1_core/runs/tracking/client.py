"""The trackers of a run, as the run sees them: calls that return at once and raise nothing.

Another process (`worker.py`) calls the trackers. Trackers patch libraries, print, ask questions, install exit handlers
and wait for the network: in the process of a run each of these could stop or slow it.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from tdmr1_core.config import RunConfig
from tdmr1_core.config_loading import dump
from tdmr1_core.errors import warn
from tdmr1_core.runs.tracking.adapters import LONGEST_TAG, accepted_name
from tdmr1_core.runs.tracking.state import OUTPUT, TRACKING
from tdmr1_rewards.texts.documents import parse_json
from tdmr1_rewards.texts.redaction import redact_texts

QUEUED = 1000
"""Events that wait for the process of the trackers."""
CLOSING_LIMIT = 30.0
"""Seconds that all trackers together get at the end of a run."""
EXIT_LIMIT = 5.0
"""Further seconds in which the process of the trackers may exit; then it is killed."""
OF_THE_RUN = ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Environment variables that would make the process of the trackers a process of the run."""
QUIET = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "GIT_PYTHON_REFRESH": "quiet"}
QUIET |= {"COMET_DISABLE_AUTO_LOGGING": "1"}  # it would end its experiment with the run of MLflow
HINT = "the JSONL files are complete; a resume sends what follows the last iteration that a tracker accepted"


class Trackers:
    """Sends events of a run to its trackers. All methods return at once, except `close`."""

    def __init__(
        self,
        folder: Path,
        config: RunConfig,
        *,
        announce: Callable[[str], None] = lambda _: None,
        closing_limit: float = CLOSING_LIMIT,
    ) -> None:
        """Start the process. `announce` gets a line of text with the address of the run in each tracker."""
        self._folder, self._announce, self._limit = folder, announce, closing_limit
        self._names = config.tracking or ()
        self._lines: queue.Queue[bytes | None] = queue.Queue(QUEUED)
        self._messages: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._dropped = 0
        self._closed: set[str] = set()
        """Trackers that have reported their end."""
        self._process = self._start_process()
        self._threads: list[threading.Thread] = []
        if self._process is not None:
            jobs = (self._write, self._process.stdin), (self._read, self._process.stdout)
            self._threads = [threading.Thread(target=job, args=(pipe,), daemon=True) for job, pipe in jobs]
            for thread in self._threads:
                thread.start()
        self._put(
            {
                "trackers": self._names,
                "folder": str(folder),
                "project": config.tracking_project,
                "tags": run_tags(config),
                "config": flat_settings(config, folder),
                "closing_limit": closing_limit,
            }
        )

    def history(self, events: Iterable[tuple[str, int, Mapping[str, Any]]]) -> None:
        """Send earlier events of a resumed run, as for `numbers`, to the trackers that have not received them."""
        self._put({"history": [_numbers_event(*event) for event in events]})

    def numbers(self, log: str, step: int, values: Mapping[str, float]) -> None:
        """Send the numbers of an iteration in one of the log files. An iteration has one event for each of them."""
        self._put(_numbers_event(log, step, values))

    def image(self, name: str, step: int, path: Path) -> None:
        """Send an image file, which must stay."""
        self._put({"kind": name, "step": step, "name": name, "path": str(path)})

    def close(self, *, wait: bool = True) -> None:
        """Wait for the trackers, at most for the closing limit, and warn of what they lack.

        With `wait` False, they end later in their own process, in the same time.
        """
        deadline = time.monotonic() + self._limit + EXIT_LIMIT
        with suppress(queue.Full):
            self._lines.put_nowait(None)
        if not wait:
            return
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if self._process is not None:
            _kill(self._process)
        self._report()
        for name in self._names if self._process is not None else ():
            if name not in self._closed:
                self._warn(name, f"tracker {name} did not end within {self._limit:g} s and may lack the last values")
        if self._dropped:
            self._warn(None, f"{self._dropped} events were not sent to the trackers: their process is too slow")

    def _start_process(self) -> subprocess.Popen[bytes] | None:
        environment = {name: value for name, value in os.environ.items() if name not in OF_THE_RUN}
        environment = {name: value for name, value in environment.items() if not name.startswith("TORCHELASTIC_")}
        try:
            # A new session: Ctrl-C in the terminal does not reach it.
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "tdmr1_core.runs.tracking.worker", str(self._folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**environment, **QUIET},
                start_new_session=True,
            )
        except OSError as error:
            self._warn(None, f"the process of the trackers cannot be started: {error.strerror}")
            return None

    def _put(self, message: Mapping[str, Any]) -> None:
        """Queue a message, or count it as dropped; then report what the trackers have answered."""
        if self._process is not None:
            try:
                self._lines.put_nowait(json.dumps(redact_texts(message)).encode() + b"\n")
            except queue.Full:
                self._dropped += 1
        self._report()

    def _write(self, pipe: IO[bytes]) -> None:
        """Write queued lines, until the end or until the process is gone."""
        with suppress(OSError), pipe:
            while (line := self._lines.get()) is not None:
                pipe.write(line)
                pipe.flush()

    def _read(self, pipe: IO[bytes]) -> None:
        """Queue the answers. Warnings are issued in the thread of the run."""
        for line in pipe:
            with suppress(ValueError):
                self._messages.put(parse_json(line))

    def _report(self) -> None:
        while not self._messages.empty():
            self._report_one(self._messages.get())

    def _report_one(self, message: Mapping[str, Any]) -> None:
        name = message["tracker"]
        if "url" in message:
            self._announce(f"{name}: {message['url']}")
        elif "failed" in message:
            self._warn(name, f"tracker {name} {message['failed']}")
        else:
            self._end(name, message["lost"], message["closed"])

    def _end(self, name: str, lost: int, closed: bool) -> None:
        """Take the last message of a tracker."""
        self._closed.add(name)
        if not closed:
            self._warn(name, f"tracker {name} did not end within {self._limit:g} s; it lacks {lost} events or more")
        elif lost:
            self._warn(name, f"tracker {name} lacks {lost} events of the run")

    def _warn(self, name: str | None, text: str) -> None:
        details = f"details may be in {self._folder / TRACKING / OUTPUT}"
        warn(f"{text} ({HINT}; {details})", code="tracker-failed", tracker=name)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process that has not ended, and what it started."""
    if process.poll() is None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _numbers_event(log: str, step: int, values: Mapping[str, Any]) -> dict[str, Any]:
    """The event for the numbers of an iteration in a log file; texts and lists are skipped."""
    numbers = {name: value for name, value in values.items() if type(value) in (int, float) and name != "step"}
    return {"kind": log.partition(".")[0], "step": step, "values": numbers}


def run_tags(config: RunConfig) -> Sequence[str]:
    """The tags of a run: its kind, model and rewards, and those of the settings."""
    model = config.model.name.rstrip("/").rpartition("/")[2]  # of a directory or hub id
    tags = (config.kind, model, *(reward.name for reward in config.rewards), *config.tracking_tags)
    return list(dict.fromkeys(accepted_name(tag, LONGEST_TAG) for tag in tags))


def flat_settings(config: RunConfig, folder: Path) -> dict[str, bool | float | str | None]:
    """The settings by dotted name, without secrets, as in the config.yaml of the run folder."""
    return dict(_leaves(redact_texts(dump(config, folder)), ""))


def _leaves(tree: Any, prefix: str) -> Iterable[tuple[str, bool | float | str | None]]:
    """The values of nested settings. Items of a list are numbered if they are tables."""
    if isinstance(tree, list) and any(isinstance(item, dict) for item in tree):
        tree = {str(number): item for number, item in enumerate(tree)}
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, json.dumps(tree) if isinstance(tree, list) else tree
