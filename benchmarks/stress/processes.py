"""Waits for the processes of an item, finds those that it has left, and kills them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36


def wait(process: int, limit: float) -> int | None:
    """The exit code of a child, minus its signal; None if it was killed after `limit` seconds."""
    descriptor = os.pidfd_open(process)
    try:
        ended = select.select([descriptor], [], [], limit)[0]
    finally:
        os.close(descriptor)
    if not ended:
        kill_tree(process)
        os.kill(process, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return code if ended else None


def adopt_orphans() -> None:
    """Make this process the parent of the orphans among its descendants, so that they can be found."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children_of(process: int) -> list[int]:
    """The running children of a process; those that have ended are not counted."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = status.read_text().rpartition(")")[2].split()
            if int(fields[1]) == process and fields[0] != "Z":
                found.append(int(status.parent.name))
    return found


def kill_tree(process: int) -> None:
    """Kill all descendants of a process with SIGKILL."""
    for child in children_of(process):
        kill_tree(child)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def reap() -> None:
    """Collect the exit codes of children that have ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def name_of(process: int) -> str:
    """The command of a process."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:120]
    except OSError:
        return "ended"
