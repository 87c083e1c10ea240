"""One item of the stress test: it runs commands, checks how they end, and collects faults."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import children

from stress.processes import children_of, kill_tree, name_of, reap, wait

ALLOWED = (0, 1, 2, 130)
LIMIT = 180.0
"""Seconds that a command may take."""
GRACE = 5.0
"""Seconds after the end of a command until a process that it has left is a fault."""
SETTINGS = ("batch.groups=2", "batch.group_size=2", "timesteps.per_iteration=1", "rollout.steps=1", "threads=1")
SETTINGS += ("evaluation.images=2", "saving.checkpoint_every=1", "saving.samples_every=0", "saving.tensorboard=false")
"""The smallest settings of a run."""
ERROR = re.compile(r"^error: .+ \[[a-z0-9-]+\]$", re.MULTILINE)
FORBIDDEN = (
    "Traceback (most recent call last)",
    "please report",
    "Exception ignored",
    "internal error",
    "Fatal Python",
)


@dataclass(frozen=True)
class Done:
    """A command that has ended. `code` is its exit code, minus its signal, or None if it had to be killed."""

    code: int | None
    out: str
    err: str
    seconds: float


@dataclass
class Case:
    """The folder, the random numbers and the faults of one item. `shared` is the folder that its part has prepared."""

    part: str
    number: int
    seed: int
    folder: Path
    shared: Path
    codes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    count: int = 1

    def __post_init__(self) -> None:
        self.rng = random.Random(f"{self.seed}/{self.part}/{self.number}")
        self._commands = 0

    def fault(self, text: str) -> None:
        """Record a fault. Only its first 2000 characters are kept."""
        self.faults.append(text[:2000])

    def check(self, condition: object, text: str) -> bool:
        """Record a fault unless the condition holds; returns whether it holds."""
        if not condition:
            self.fault(text)
        return bool(condition)

    def tdmr1(
        self,
        *arguments: object,
        prepare: Callable[[], None] | None = None,
        limit: float = LIMIT,
        allowed: Sequence[int] = ALLOWED,
        meanwhile: Callable[[int], None] | None = None,
        pipes: bool = False,
    ) -> Done:
        """Run `tdmr1` in a fork and check its end.

        `meanwhile` gets its process id while it runs. With `pipes` its stdout and stderr are pipes, not files.
        """
        out, err = self.logs()
        words = [str(argument) for argument in arguments]
        readers, ends = zip(*map(_read_pipe, (out, err)), strict=True) if pipes else ((), (out, err))
        began = time.monotonic()
        process = children.start(words, *ends, prepare)
        if meanwhile is not None:
            meanwhile(process)
        code = wait(process, limit)
        for reader in readers:
            reader.wait(GRACE)
        done = Done(code, read(out), read(err), time.monotonic() - began)
        self.judge(done, " ".join(words[:2]), allowed)
        return done

    def fresh(self, *arguments: object, limit: float = LIMIT, allowed: Sequence[int] = ALLOWED, **streams: Any) -> Done:
        """Run `python -m tdmr1_cli` in a new interpreter and check its end."""
        out, err = self.logs()
        began = time.monotonic()
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = subprocess.Popen(
                command(*arguments), **{"stdin": subprocess.DEVNULL, "stdout": stdout, "stderr": stderr, **streams}
            )
            code = wait(process.pid, limit)
        process.returncode = -1 if code is None else code
        done = Done(code, read(out), read(err), time.monotonic() - began)
        self.judge(done, "fresh " + " ".join(map(str, arguments[:2])), allowed)
        return done

    def logs(self) -> tuple[Path, Path]:
        """New files for stdout and stderr of a command."""
        self._commands += 1
        return tuple(self.folder / f"{self._commands}.{name}" for name in ("out", "err"))  # type: ignore[return-value]

    def judge(self, done: Done, what: str, allowed: Sequence[int] = ALLOWED, grace: float | None = None) -> None:
        """Record how a command has ended, with a fault if this is not allowed. `grace` is as in `end_children`."""
        self.codes[str(done.code)] += 1
        end = last_line(done.err)
        if done.code is None:
            self.fault(f"{what}: hangs, killed after {done.seconds:.0f} s; stderr ends with {end!r}")
        elif done.code not in allowed:
            self.fault(f"{what}: exit code {done.code}; stderr ends with {end!r}")
        elif done.code == 2 and not ERROR.search(done.err):
            self.fault(f"{what}: exit code 2 without an error with a code; stderr ends with {end!r}")
        for text in FORBIDDEN:
            if text in done.err:
                line = next((each for each in done.err.split("\n") if text in each), "")
                self.fault(f"{what}: {text!r} on stderr: {line[:300]} … {end!r}")
                break
        self.end_children(what, grace)

    def end_children(self, what: str, grace: float | None = None) -> None:
        """Kill the processes that a command has left; a fault if they do not end within `grace` seconds (GRACE)."""
        until = time.monotonic() + (grace or GRACE)
        own = os.getpid()
        while (left := children_of(own) or children_of(own)) and time.monotonic() < until:  # a parent may just end
            reap()
            time.sleep(0.02)
        if left:
            self.fault(f"{what}: left {len(left)} processes: {[name_of(process) for process in left]}")
            kill_tree(own)
            reap()

    def check_saved(self, run: Path, least: int) -> None:
        """A fault unless the run has a checkpoint and metrics of at least the first `least` iterations."""
        steps = steps_of(run)
        self.check(steps[:least] == list(range(1, least + 1)), f"metrics of iterations are lost: {steps}, not {least}")
        latest = run / "checkpoints" / "latest"
        saved = latest.read_text().strip() if latest.is_file() else "step-0"
        number = int(saved.rpartition("-")[2]) if saved.rpartition("-")[2].isdigit() else 0
        self.check(number >= least, f"the last checkpoint is {saved}, but {least} iterations were completed")


def small(*changes: str) -> list[str]:
    """The options of the smallest run, with further or other settings."""
    last = {setting.partition("=")[0]: setting for setting in (*SETTINGS, *changes)}
    return ["--preset", "tiny", *(part for setting in last.values() for part in ("--set", setting))]


def command(*arguments: object) -> list[str]:
    """The command of a new interpreter that runs `tdmr1`."""
    return [sys.executable, "-m", "tdmr1_cli", *map(str, arguments)]


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON lines file without times. Lines that cannot be read are omitted."""
    rows = []
    with contextlib.suppress(OSError):
        for line in path.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                rows.append(children.without_times(json.loads(line)))
    return rows


def steps_of(run: Path) -> list[int]:
    """The iterations in metrics.jsonl."""
    return [row["step"] for row in rows_of(run / "metrics.jsonl") if isinstance(row.get("step"), int)]


def _read_pipe(path: Path) -> tuple[subprocess.Popen[bytes], Path]:
    """A named pipe, and a process that copies what is written there to a file."""
    pipe = path.with_suffix(f"{path.suffix}.pipe")
    os.mkfifo(pipe)
    with path.open("wb") as file:
        return subprocess.Popen(["cat", str(pipe)], stdout=file), pipe


def read(path: Path) -> str:
    """The last megabyte of a text file."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - (1 << 20)))
        return file.read().decode(errors="replace")


def last_line(text: str) -> str:
    """The last error of a text, else its last line."""
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or [""])[-1][:500]
