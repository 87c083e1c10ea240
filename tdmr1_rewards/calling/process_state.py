"""Keeps a reward from changing the process that it runs in: its current directory, torch's settings and so on.

Several rewards may run at the same time. What they share is compared with the state before the first one of them, and
is restored after the last one: one of them may have changed it only for a while.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

from tdmr1_rewards.calling import process_settings as settings
from tdmr1_rewards.calling.damage import report_damage
from tdmr1_rewards.errors import RewardWarning, Tdmr1Error

SIGNALS = (signal.SIGINT, signal.SIGTERM)
OF_LIBRARIES = ("TORCHINDUCTOR_", "TRITON_", "PYTORCH_", "KMP_", "TF_", "NUMBA_", "LD_LIBRARY_PATH", "QT_", "OPENCV_")
"""Prefixes of environment variables that libraries set when they are first used. They are left alone."""
OVERLAP_LIMIT = 60.0
"""Seconds after which an open context does not count any more: its call may hang for ever."""
NAMED = 5
"""At most this many environment variables are named in a warning."""


class SharedState:
    """What all threads share: directory, environment, limits, functions, standard streams and their files."""

    def __init__(self) -> None:
        self._directory = _directory()
        self._environment = dict(os.environ)
        self._limits = settings.read_limits()
        self._names = settings.read_names()
        self._streams = {name: getattr(sys, name, None) for name in settings.STREAMS}
        self.files = settings.StandardFiles()

    def restore(self, *, environment: bool) -> list[str]:
        """Restore what differs now. Returns what it was, in words. Environment variables are optional."""
        found = settings.restore_names(self._names)  # first, because the other lines use them
        if self._directory is not None and _directory() != self._directory:
            found.append("the current directory")
            os.chdir(self._directory)
        if environment:
            found += self._restore_environment()
        found += settings.restore_limits(self._limits) + settings.restore_streams(self._streams)
        return found + self.files.restore()

    def _restore_environment(self) -> list[str]:
        before = self._environment
        changed = {name for name, _ in set(os.environ.items()) ^ set(before.items())}
        changed = {name for name in changed if not (name in os.environ and name.startswith(OF_LIBRARIES))}
        for name in changed:
            if name in before:
                os.environ[name] = before[name]
            else:
                del os.environ[name]
        shown = sorted(changed)[:NAMED] + ([f"{len(changed) - NAMED} more"] if len(changed) > NAMED else [])
        return [f"environment variables ({', '.join(shown)})"] if shown else []


_lock = threading.Lock()
_active: dict[object, float] = {}
"""The `unchanged_process` contexts that are open, in all threads, and when each began, by time.monotonic()."""
_shared: SharedState | None = None
"""The state before the first of them."""


@contextmanager
def unchanged_process(
    report: Callable[[str], None], *, owner: str = "a reward", environment: bool = True
) -> Iterator[None]:
    """Restore the state of the process at the end of the context, and report what had changed, as one sentence part.

    `environment` says whether environment variables are restored too. If files of the process were closed, it cannot go
    on: `report_damage` gets an error that names the `owner`.
    """
    context, handlers, torch = _enter(), _handlers(), _torch_state()
    try:
        yield
    finally:
        changed = _leave(context, owner, environment)
        changed += _restore_handlers(handlers) + _restore_torch(torch or _torch_defaults())
        if changed:
            report(" and ".join(changed))


def _enter() -> object:
    """Take the shared state, unless another context has. Returns the key of this one."""
    global _shared
    with _lock:
        if _shared is None or not _overlaps():
            _shared = SharedState()
        context = object()
        _active[context] = time.monotonic()
        return context


def _leave(context: object, owner: str, environment: bool) -> list[str]:
    """Restore the shared state, unless another context is open. Returns what had changed."""
    global _shared
    with _lock:
        del _active[context]
        shared = _shared
        assert shared is not None, "it exists as long as a context is open"
        if not _active:
            _shared = None
        if shared.files.are_lost:
            report_damage(_files_lost(owner))
        return [] if _overlaps() else shared.restore(environment=environment)


def _overlaps() -> bool:
    """Whether another context is open that does not hang."""
    return any(time.monotonic() - began < OVERLAP_LIMIT for began in _active.values())


def _files_lost(owner: str) -> Tdmr1Error:
    return Tdmr1Error(
        f"{owner} closed files of this process, such as with os.closerange, so that it cannot go on",
        "set `isolated: true` for the reward; the checkpoints of a run are intact: `tdmr1 train --resume RUN`",
        code="reward-failed",
        values={"reward": owner},
    )


def _handlers() -> dict[int, Any]:
    """Signal handlers; only the main thread can change them."""
    is_main = threading.current_thread() is threading.main_thread()
    return {number: signal.getsignal(number) for number in SIGNALS} if is_main else {}


def _restore_handlers(before: Mapping[int, Any]) -> list[str]:
    found = []
    for number, handler in before.items():
        if signal.getsignal(number) is not handler and handler is not None:
            found.append(f"the handler of {signal.Signals(number).name}")
            signal.signal(number, handler)
    return found


def guarded_import(owner: str) -> AbstractContextManager[None]:
    """A context that restores what code of `owner` changes when it is imported; one warning says what it was.

    Environment variables stay, because later calls may need them.
    """

    def warn(changed: str) -> None:
        message = f"{owner} changes {changed} when it is imported or built, which is restored"
        warnings.warn(RewardWarning(message, code="reward-process-state", values={"changed": changed}), stacklevel=2)

    return unchanged_process(warn, owner=owner, environment=False)


def _directory() -> str | None:
    """The current directory; None if it was deleted."""
    with suppress(OSError):
        return os.getcwd()
    return None


_TORCH_SETTINGS: dict[str, tuple[str, Callable[[Any], Any], Callable[[Any, Any], Any]]] = {
    "dtype": (
        "torch's default dtype",
        lambda torch: torch.get_default_dtype(),
        lambda torch, value: torch.set_default_dtype(value),
    ),
    "threads": (
        "the number of torch's threads",
        lambda torch: torch.get_num_threads(),
        lambda torch, value: torch.set_num_threads(value),
    ),
    "grad": (
        "torch's grad mode",
        lambda torch: torch.is_grad_enabled(),
        lambda torch, value: torch.set_grad_enabled(value),
    ),
    "deterministic": (
        "torch's deterministic algorithms",
        lambda torch: torch.are_deterministic_algorithms_enabled(),
        lambda torch, value: torch.use_deterministic_algorithms(value),
    ),
}
"""Settings of torch for the process or the thread: what they are, how they are read, and how they are set."""


def _torch_state() -> dict[str, Any]:
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "get_default_dtype"):  # not imported, or an import is under way
        return {}
    return {name: read(torch) for name, (_, read, _) in _TORCH_SETTINGS.items()}


def _torch_defaults() -> dict[str, Any]:
    """The settings of torch after its import, except the number of threads, which depends on the machine."""
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "float32"):
        return {}
    return {"dtype": torch.float32, "grad": True, "deterministic": False}


def _restore_torch(before: Mapping[str, Any]) -> list[str]:
    """Restore the settings of torch that differ, and return what they are."""
    found, now = [], _torch_state()
    for name, value in before.items():
        what, _, write = _TORCH_SETTINGS[name]
        if now.get(name) != value:
            found.append(what)
            write(sys.modules["torch"], value)
    return found
