"""Keeps code of users, such as a reward in a thread, from ending the program with another exit code than its own.

Within `exits_refused`, functions that end this process without an exception raise ExitCalled instead. `settle` makes an
exit code final: exit handlers and threads that still run can neither change it nor keep the program from ending. Forks
of this process are not affected. Compiled code that calls `_exit` cannot be stopped; `isolated: true` can.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from typing import Any, NoReturn

from tdmr1_cli.output import warning

REFUSED = ("_exit", "execv", "execve")
"""Functions of `os` that end this process. All others that run another program in its place call them."""
THREADS_LIMIT = 3.0
"""Seconds that threads of rewards may keep the program from ending."""

_EXIT = os._exit

_process: int | None = None
"""The process whose exits are refused; None outside of `exits_refused`."""
_settled: int | None = None
"""The final exit code of that process."""


class ExitCalled(SystemExit):
    """Code of this process called a function that ends it. The message is the call, such as "os._exit(0)"."""


@contextmanager
def exits_refused() -> Iterator[None]:
    """Within the context, functions of REFUSED raise ExitCalled in this process, from any thread."""
    global _process
    if _process is None:
        _replace_functions()
    former, _process = _process, os.getpid()
    try:
        yield
    finally:
        _process = former


def settle(code: int) -> None:
    """Make `code` the exit code of this process, which is about to end."""
    global _process, _settled
    _process, _settled = os.getpid(), code
    ending = threading.Event()
    atexit.register(ending.set)  # the interpreter calls it after the end of all threads that are not daemons
    threading.Thread(target=_end_late, args=(ending, code), name="exit", daemon=True).start()


def _end_late(ending: threading.Event, code: int) -> None:
    """End the process if threads keep it from ending for longer than THREADS_LIMIT."""
    if ending.wait(THREADS_LIMIT):
        return
    own = (threading.main_thread(), threading.current_thread())
    names = [each.name for each in threading.enumerate() if not each.daemon and each not in own]
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    warning(f"the program ends although code of a reward still runs in threads that are not daemons: {shown}")
    exit_at_once(code)


def exit_at_once(code: int) -> NoReturn:
    """End this process without waiting for threads, such as those of torch that wait for another process."""
    atexit._run_exitfuncs()
    end(code)


def end(code: int) -> NoReturn:
    """End this process at once, without exit handlers."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # a reward may have closed or replaced it
            stream.flush()
    _EXIT(code)


def _replace_functions() -> None:
    """Replace the functions of REFUSED, in `os` and in the module that it takes them from."""
    for name in REFUSED:
        original = getattr(os, name)
        if not hasattr(original, "__wrapped__"):
            module = sys.modules.get(original.__module__, os)
            for owner in (os, module):
                setattr(owner, name, _refusing(original))


def _refusing(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def refuse(*arguments: Any) -> Any:
        if os.getpid() != _process:
            return original(*arguments)
        if _settled is not None:
            end(_settled)
        raise ExitCalled(f"os.{original.__name__}({', '.join(map(repr, arguments))})")

    return refuse
