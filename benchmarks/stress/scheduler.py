"""Runs items in forks, two at a time, and keeps a journal of the finished ones."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import shutil
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stress.case import Case
from stress.journal import Journal, Progress, Row
from stress.processes import adopt_orphans, kill_tree

KEPT = 1 << 20
"""Largest size, in bytes, of a file that is kept of an item with a fault."""


@dataclass(frozen=True)
class Part:
    """A kind of items. `run` executes one item, and `prepare` makes a folder that all its items read.

    The folder has the name `shared`, by default that of the part; parts may share one. `seconds` is the expected and
    `limit` the longest time of an item. An item of `size` makes that many attempts.
    """

    name: str
    run: Callable[[Case], None]
    seconds: float
    prepare: Callable[[Case], None] | None = None
    shared: str = ""
    limit: float = 900.0
    size: int = 1


class Scheduler:
    """Runs the items that the journal does not have yet."""

    def __init__(self, output: Path, seed: int, journal: Journal, workers: int) -> None:
        self._output = output
        self._seed = seed
        self._journal = journal
        self._workers = workers
        self._running: dict[int, tuple[Part, int, float, int]] = {}
        """By process id: part, number, start and descriptor of the process."""

    def run(self, items: Sequence[tuple[Part, int]]) -> None:
        """Run all items. Ctrl-C ends those that run and keeps the finished ones."""
        waiting = [item for item in items if (item[0].name, item[1]) not in self._journal.rows]
        left = Counter(part.name for part, _ in waiting)
        progress = Progress({part.name: part.seconds for part, _ in waiting}, left, self._workers)
        waiting.reverse()
        try:
            while waiting or self._running:
                while waiting and len(self._running) < self._workers:
                    self._start(*waiting.pop())
                for row in self._wait():
                    self._journal.add(row)
                    progress.show(row)
        finally:
            for process in self._running:
                _end(process)

    def _start(self, part: Part, number: int) -> None:
        shared = self._output / "shared" / (part.shared or part.name)
        if part.prepare is not None and not shared.exists():
            _prepare(part, shared, self._seed)
        folder = self._output / "work" / f"{part.name}-{number}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        case = Case(part.name, number, self._seed, folder, shared, count=part.size)
        process = _fork(lambda: _run(part, case))
        self._running[process] = part, number, time.monotonic(), os.pidfd_open(process)

    def _wait(self) -> list[Row]:
        descriptors = [running[3] for running in self._running.values()]
        ended = select.select(descriptors, [], [], 1.0)[0]
        rows = []
        for process, (part, number, began, descriptor) in list(self._running.items()):
            seconds = time.monotonic() - began
            if descriptor not in ended and seconds < part.limit:
                continue
            problem = ""
            if descriptor not in ended:
                _end(process)
                problem = f"the item was ended after {seconds:.0f} s"
            code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            os.close(descriptor)
            del self._running[process]
            rows.append(
                self._collect(part, number, problem or (f"the item ended with {code}" if code else ""), seconds)
            )
        return rows

    def _collect(self, part: Part, number: int, problem: str, seconds: float) -> Row:
        folder = self._output / "work" / f"{part.name}-{number}"
        row: Row = {"part": part.name, "number": number, "seed": self._seed, "count": part.size, "codes": {}}
        row |= {"faults": [], "notes": []}
        with contextlib.suppress(OSError, ValueError):
            row |= json.loads((folder / "item.json").read_text())
        row |= {"faults": [*([problem] if problem else []), *row["faults"]], "seconds": round(seconds, 2)}
        if row["faults"]:
            _keep_small_files(folder, self._output / "faults" / folder.name)
        shutil.rmtree(folder, ignore_errors=True)
        return row


def _prepare(part: Part, shared: Path, seed: int) -> None:
    """Make the folder of a part, in a fork."""
    made = shared.with_name(f"{shared.name}.partial")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    case = Case(part.name, -1, seed, made, made)

    def prepare() -> None:
        assert part.prepare is not None
        part.prepare(case)
        if case.faults:
            raise SystemExit(f"the folder of {part.name} cannot be prepared: {case.faults}")

    process = _fork(prepare)
    if os.waitpid(process, 0)[1]:
        raise SystemExit(f"the folder of the part {part.name} cannot be prepared: see {made}")
    made.rename(shared)


def _run(part: Part, case: Case) -> None:
    try:
        part.run(case)
    except BaseException:
        case.fault(f"the item raised an exception: {traceback.format_exc()[-1500:]}")
    case.end_children("the item")
    row = {"count": case.count, "codes": dict(case.codes), "faults": case.faults, "notes": case.notes}
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    row["cpu"] = round(sum(each.ru_utime + each.ru_stime for each in used), 2)
    (case.folder / "item.json").write_text(json.dumps(row))


def _fork(action: Callable[[], None]) -> int:
    """Run an action in a child with its own session, which becomes the parent of orphans; returns its process id."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        adopt_orphans()
        action()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _end(process: int) -> None:
    """Kill an item and its descendants."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGSTOP)  # so that it starts no other process
        kill_tree(process)
        os.kill(process, signal.SIGKILL)


def _keep_small_files(folder: Path, place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_size <= KEPT:
            (place / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place / path.relative_to(folder))
