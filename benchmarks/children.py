"""Runs the command line in child processes, forked from a process that has already loaded the libraries."""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

UNPREPARED = 70
"""The exit code of a child whose preparation failed."""
TIMES = ("time/", "images_per_second")
"""Prefixes of the metrics that depend on the clock."""


def load_libraries() -> None:
    """Load the slow imports once, before children are forked."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with contextlib.redirect_stdout(sys.stderr):
        import tdmr1_core.models.sd3
        import tdmr1_core.runs.run

        assert tdmr1_core.models.sd3
        assert tdmr1_core.runs.run


def child(arguments: list[str], log: Path, prepare: Callable[[], None] | None = None) -> int:
    """Run `tdmr1` with these arguments in a child, after `prepare()`; returns its exit code, or minus its signal."""
    return os.waitstatus_to_exitcode(os.waitpid(start(arguments, log, log, prepare), 0)[1])


def start(arguments: list[str], stdout: Path, stderr: Path, prepare: Callable[[], None] | None = None) -> int:
    """Start `tdmr1` with these arguments in a child, after `prepare()`; returns its process id.

    The child ends as a new interpreter does: it waits for its threads and calls the functions of `atexit`.
    """
    process = os.fork()
    if process:
        return process
    code = UNPREPARED
    try:
        with open(os.devnull) as nothing, stdout.open("ab", 0) as out, stderr.open("ab", 0) as errors:
            for number, file in enumerate((nothing, out, errors)):
                os.dup2(file.fileno(), number)
        code = _run(arguments, prepare)
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(code)


def _run(arguments: list[str], prepare: Callable[[], None] | None) -> int:
    from tdmr1_cli.error_boundary import report_stray_exceptions
    from tdmr1_cli.main import main as tdmr1

    report_stray_exceptions()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.write(2, f"$ tdmr1 {shlex.join(arguments)}\n".encode(errors="surrogateescape"))
    if prepare is not None:
        prepare()
    return tdmr1(arguments)


def before(owner: Any, name: str, action: Callable[[], None]) -> None:
    """Patch `owner.name`: call `action` before the first call."""
    real, calls = getattr(owner, name), itertools.count()

    def patched(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == 0:
            action()
        return real(*args, **kwargs)

    setattr(owner, name, patched)


def after(owner: Any, name: str, count: int, action: Callable[[], None]) -> None:
    """Patch `owner.name`: call `action` after the count-th call, before its result is used."""
    real, calls = getattr(owner, name), itertools.count(1)

    def patched(*args: Any, **kwargs: Any) -> Any:
        result = real(*args, **kwargs)
        if next(calls) == count:
            action()
        return result

    setattr(owner, name, patched)


def without_times(row: dict[str, Any]) -> dict[str, Any]:
    """The metrics of a line that do not depend on the clock."""
    return {name: value for name, value in row.items() if not name.startswith(TIMES)}
