"""Rewards that exist only in this Python program or notebook, such as a lambda or a function of a cell.

`tdmr1_core.train` provides them while it uses them. Their source is `tdmr1_rewards.calling.session:NAME`, so that all
that finds, checks and builds rewards treats them as objects of a module. Other processes do not have them: there, an
attribute of this module raises an error that says so.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tdmr1_rewards.errors import Tdmr1Error

MODULE = __name__
_provided: dict[str, Any] = {}


class AbsentObject(Tdmr1Error, AttributeError):
    """This process does not have an object. It is an AttributeError, because pickle asks every module for names."""


@contextmanager
def provide(objects: Mapping[str, Any]) -> Iterator[None]:
    """Within the context, the objects are attributes of this module. Names are valid names of Python."""
    former = dict(_provided)
    _provided.update(objects)
    try:
        yield
    finally:
        _provided.clear()
        _provided.update(former)


def source_of(name: str) -> str:
    """The source of a provided object."""
    return f"{MODULE}:{name}"


def name_in(source: str | None) -> str | None:
    """The name of the object that a source refers to; None for a source of another kind."""
    module, _, name = (source or "").partition(":")
    return name if module == MODULE else None


def is_provided(name: str) -> bool:
    """Whether this process has the object."""
    return name in _provided


def fingerprint(name: str) -> str:
    """A text that changes with the source code of an object: of a function, or of the class of another object."""
    target = _provided.get(name)
    while isinstance(target, functools.partial):
        target = target.func
    try:
        code = inspect.getsource(target if inspect.isroutine(target) or inspect.isclass(target) else type(target))
    except (OSError, TypeError):  # typed into an interpreter, or not written in Python
        return f"{name} of unknown code"
    return f"{name} of sha256 {hashlib.sha256(code.encode()).hexdigest()}"


def absent(*names: str, hint: str = "resume the run in Python: tdmr1_core.train(resume=RUN, reward=…)") -> AbsentObject:
    """The error for objects that this process does not have."""
    what = "is an object" if len(names) == 1 else "are objects"
    return AbsentObject(
        f"{' and '.join(map(repr, names))} {what} of a Python program or notebook, which this process does not have",
        hint,
        code="reward-import",
        values={"rewards": list(names)},
    )


def __getattr__(name: str) -> Any:
    """A provided object. Raises AbsentObject for another name."""
    if name in _provided:
        return _provided[name]
    raise absent(name)
