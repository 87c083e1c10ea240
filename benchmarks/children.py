"""The real command line in processes of their own, forked from one that has loaded the libraries already."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

NOT_NUMERICS = ("time/", "images_per_second")
"""Metrics that tell of the clock."""


def load_libraries() -> None:
    """Load what takes long once; children are forked from here."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with contextlib.redirect_stdout(sys.stderr):
        import tdmr1_core.models.sd3
        import tdmr1_core.runs.run

        assert tdmr1_core.models.sd3
        assert tdmr1_core.runs.run


def child(arguments: list[str], log: Path, prepare: Callable[[], None] | None = None) -> int:
    """Run `tdmr1` with these arguments, after `prepare` in its process; its exit code, or minus the signal."""
    process = os.fork()
    if process == 0:
        with log.open("ab", buffering=0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os._exit(_run(arguments, prepare))
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _run(arguments: list[str], prepare: Callable[[], None] | None) -> int:
    from tdmr1_cli.main import main as tdmr1

    print("$ tdmr1", *arguments, flush=True)
    if prepare is not None:
        prepare()
    return tdmr1(arguments)


def before(owner: Any, name: str, first: Callable[[], None]) -> None:
    """Do something before the first call."""
    real, calls = getattr(owner, name), itertools.count()

    def doing(*given: Any, **named: Any) -> Any:
        if next(calls) == 0:
            first()
        return real(*given, **named)

    setattr(owner, name, doing)


def after(owner: Any, name: str, count: int, then: Callable[[], None]) -> None:
    """Do something when the count-th call has done its work, which nobody has used yet."""
    real, calls = getattr(owner, name), itertools.count(1)

    def doing(*given: Any, **named: Any) -> Any:
        answer = real(*given, **named)
        if next(calls) == count:
            then()
        return answer

    setattr(owner, name, doing)


def timeless(row: dict[str, Any]) -> dict[str, Any]:
    """A line of metrics but for the clock's."""
    return {name: value for name, value in row.items() if not name.startswith(NOT_NUMERICS)}
