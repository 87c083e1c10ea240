"""What code of a reward can change for the whole process, besides torch: how it is read and how it is restored."""

from __future__ import annotations

import builtins
import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from types import ModuleType
from typing import Any

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

MODULES: tuple[ModuleType, ...] = (builtins, json, os)
"""Modules whose functions the whole program uses. Functions that are replaced or deleted are restored."""
STREAMS = {"stdin": 0, "stdout": 1, "stderr": 2}
LIMITS = ("NOFILE", "FSIZE", "AS", "DATA", "STACK", "CPU", "NPROC")
"""Limits of `resource.setrlimit`."""

Names = Mapping[ModuleType, Mapping[str, Any]]


def read_limits() -> dict[str, Any]:
    """The umask, the recursion limit, and (soft, hard) of every limit of LIMITS that this system has."""
    limits: dict[str, Any] = {"umask": _umask(), "recursion limit": sys.getrecursionlimit()}
    known = [f"RLIMIT_{name}" for name in LIMITS if hasattr(resource, f"RLIMIT_{name}")]
    return limits | {name: resource.getrlimit(getattr(resource, name)) for name in known}


def restore_limits(before: Mapping[str, Any]) -> list[str]:
    """Restore what `read_limits` returned, as far as this user can. Returns what differed."""
    now = read_limits()
    changed = [name for name in before if now[name] != before[name]]
    for name in changed:
        if name == "umask":
            os.umask(before[name])
        elif name == "recursion limit":
            sys.setrecursionlimit(before[name])
        else:
            _restore_limit(getattr(resource, name), *before[name])
    return [f"the {name}" if name.islower() else f"the limit {name}" for name in changed]


def read_names() -> Names:
    """The names in MODULES and their values."""
    return {module: dict(vars(module)) for module in MODULES}


def restore_names(before: Names) -> list[str]:
    """Restore names that `read_names` returned and that have another value now. Returns them. New names stay."""
    found = []
    for module, values in before.items():
        now = vars(module)
        for name, value in values.items():
            if now.get(name) is not value and name != "_":  # an interactive session sets builtins._
                found.append(f"{module.__name__}.{name}")
                setattr(module, name, value)
    return found


def restore_streams(before: Mapping[str, Any]) -> list[str]:
    """Restore those of sys.stdin, sys.stdout and sys.stderr that are closed or None now. Returns them.

    Other objects in their place stay: another thread may have redirected a stream for a while.
    """
    found = [name for name, stream in before.items() if _is_open(stream) and not _is_open(getattr(sys, name, None))]
    for name in found:
        setattr(sys, name, before[name])
    return [f"sys.{name}" for name in found]


class StandardFiles:
    """The open files with the descriptors 0 to 2, and copies of them."""

    def __init__(self) -> None:
        self._copies: dict[int, tuple[int, Any]] = {}
        for number in STREAMS.values():
            with suppress(OSError):
                copy = os.dup(number)
                self._copies[number] = (copy, _identity(copy))

    @property
    def are_lost(self) -> bool:
        """Whether a copy is closed, for which the code that closed it could have no reason: more files may be."""
        return any(_identity(copy) != identity for copy, identity in self._copies.values())

    def restore(self) -> list[str]:
        """Restore descriptors that are closed or have another file. Returns them."""
        changed = [number for number, (_, identity) in self._copies.items() if _identity(number) != identity]
        for number in changed:
            os.dup2(self._copies[number][0], number)
        return [f"file descriptor {number}" for number in changed]

    def __del__(self) -> None:
        for copy, identity in self._copies.values():
            if _identity(copy) == identity:  # otherwise it is the descriptor of another file now
                os.close(copy)


def _umask() -> int:
    with suppress(OSError, ValueError), open("/proc/self/status", encoding="utf-8", errors="replace") as file:
        return next(int(line.split()[1], 8) for line in file if line.startswith("Umask:"))
    mask = os.umask(0o077)  # no other way; until the next line, other threads create private files
    os.umask(mask)
    return mask


def _restore_limit(number: int, soft: int, hard: int) -> None:
    """Set a limit; only the soft one if this user cannot increase the hard one again."""
    with suppress(ValueError, OSError):
        resource.setrlimit(number, (soft, hard))
        return
    resource.setrlimit(number, (resource.getrlimit(number)[1],) * 2)


def _is_open(stream: Any) -> bool:
    return stream is not None and not getattr(stream, "closed", False)


def _identity(descriptor: int) -> Any:
    """What identifies an open file; None if it is closed."""
    with suppress(OSError):
        found = os.fstat(descriptor)
        return found.st_dev, found.st_ino, found.st_rdev
    return None
