"""Finds the line of a reward's own code that raised an exception. Standard library only, because workers use it."""

from __future__ import annotations

import os
import sysconfig
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from typing import Any

from tdmr1_rewards.errors import describe_error, join_hints, one_line

DEBUG_HINT = "TDMR1_DEBUG=1 shows the whole traceback"
SITE_FOLDERS = ("site-packages", "dist-packages")
"""Names of folders with installed packages."""
DISPATCHERS = ("torch", "pydantic", "pluggy")
"""Packages that call the code of rewards: torch calls `forward`, pydantic validators, and pluggy hooks."""
OWN = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OWN_PACKAGES = tuple(os.path.join(os.path.dirname(OWN), name) for name in ("tdmr1_rewards", "tdmr1_core", "tdmr1_cli"))
OWN_REWARDS = tuple(os.path.join(OWN, name) for name in ("builtin", "feedback"))
"""The folders of OWN_PACKAGES that contain rewards."""
HINT = "_tdmr1_hint"
"""The attribute of an exception that has the hint for it."""


@dataclass(frozen=True)
class Place:
    """A line of code. `file` is relative to the current folder if it is below it; `function` is None at the top."""

    file: str
    line: int
    function: str | None = None

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" + (f", in {self.function}" if self.function else "")


@dataclass(frozen=True)
class Raised:
    """An exception of a reward's code: one line that describes it, and where it was raised, if that is known."""

    described: str
    place: Place | None

    def __str__(self) -> str:
        return f"{self.described} ({self.place})" if self.place else self.described

    @property
    def values(self) -> dict[str, Any]:
        """The values of an error that reports the exception: error, and file and line if they are known."""
        where = {"file": self.place.file, "line": self.place.line} if self.place else {}
        return {"error": self.described, **where}

    def hint(self, remedy: str) -> str | None:
        """Where to look, if that is known, and `remedy`."""
        return join_hints(place_hint(self.values), remedy)


def describe_raised(error: BaseException) -> Raised:
    """Describe an exception of a reward's code.

    The place is the innermost frame outside of tdmr1, installed packages and the standard library. If there is none,
    the reward is in an installed package; then it is the innermost frame of that package.
    """
    error = _only_part(error)
    frame = _own_frame(error)
    described = describe_error(error)
    if isinstance(error, SyntaxError) and frame is not None and frame.filename == error.filename:
        described = f"{type(error).__name__}: {one_line(error.msg)}"  # the text of the error repeats file and line
    return Raised(described, None if frame is None else _place(frame))


def place_hint(values: Mapping[str, Any]) -> str | None:
    """The hint for an exception, from the values of its error; None without file and line."""
    return f"look at {values['file']}, line {values['line']}; {DEBUG_HINT}" if "line" in values else None


def attach_hint(error: BaseException, hint: str) -> None:
    """Attach a hint to an exception, for the error that reports it."""
    setattr(error, HINT, hint)


def attached_hint(error: BaseException) -> str | None:
    """The hint that is attached to an exception."""
    return getattr(error, HINT, None)


def _only_part(error: BaseException) -> BaseException:
    """The exception in an exception group that has only one, as of an asyncio.TaskGroup; other ones are unchanged."""
    parts: Any = getattr(error, "exceptions", None)
    is_group = isinstance(parts, tuple) and len(parts) == 1 and isinstance(parts[0], BaseException)
    return _only_part(parts[0]) if is_group else error


def _own_frame(error: BaseException) -> traceback.FrameSummary | None:
    frames = [frame for frame in _frames(error) if not _is_machinery(frame.filename)]
    users = [frame for frame in frames if _package(frame.filename) is None]
    if users:
        return _named(users)
    packages = [str(_package(frame.filename)) for frame in frames]
    called = next((name for name in packages if name not in DISPATCHERS), None)
    of_reward = [frame for frame, name in zip(frames, packages, strict=True) if name == called]
    return _named(of_reward) if of_reward else None


def _frames(error: BaseException) -> Iterator[traceback.FrameSummary]:
    """The frames of an exception, the innermost last. A file with a syntax error is the innermost one."""
    for frame, line in traceback.walk_tb(error.__traceback__):
        yield traceback.FrameSummary(frame.f_code.co_filename, line, frame.f_code.co_name, lookup_line=False)
    if isinstance(error, SyntaxError) and error.filename and error.lineno and os.path.isfile(error.filename):
        yield traceback.FrameSummary(error.filename, error.lineno, "<module>", lookup_line=False)


def _named(frames: Sequence[traceback.FrameSummary]) -> traceback.FrameSummary:
    """The last frame. A comprehension has the name of the function that contains it."""
    last = frames[-1]
    same_file = takewhile(lambda frame: frame.filename == last.filename, reversed(frames))
    name = next((frame.name for frame in same_file if not frame.name.endswith(("comp>", "expr>"))), last.name)
    return traceback.FrameSummary(last.filename, last.lineno, name, lookup_line=False)


def _is_machinery(file: str) -> bool:
    """Whether a file belongs to the standard library or calls rewards for tdmr1, or is not a file ("<string>")."""
    if file.startswith("<"):
        return True
    return _package(file) is None and _is_below(file, (*_standard_library(), *OWN_PACKAGES))


def _package(file: str) -> str | None:
    """The name of the installed package, or of the folder of tdmr1 with rewards, that a file belongs to."""
    for folder in OWN_REWARDS:
        if _is_below(file, (folder,)):
            return folder
    if _is_below(file, OWN_PACKAGES):
        return None
    parts = file.replace("\\", "/").split("/")
    after = [index + 1 for index, part in enumerate(parts) if part in SITE_FOLDERS]
    return parts[after[-1]].removesuffix(".py") if after else None


def _is_below(file: str, folders: Sequence[str]) -> bool:
    return file.startswith(tuple(os.path.join(folder, "") for folder in folders))


@cache
def _standard_library() -> tuple[str, ...]:
    folders = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), os.path.dirname(traceback.__file__)}
    return tuple(folders | {os.path.realpath(folder) for folder in folders})


def _place(frame: traceback.FrameSummary) -> Place:
    file = frame.filename
    try:
        here = os.path.join(os.getcwd(), "")
    except OSError:  # the current folder was deleted
        here = ""
    absolute = os.path.abspath(file) if here else file
    shown = absolute[len(here) :] if here and absolute.startswith(here) else absolute
    return Place(shown, frame.lineno or 0, None if frame.name == "<module>" else frame.name)
