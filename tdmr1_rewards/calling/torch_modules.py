"""Prepares scorers that are torch modules. torch is never imported here; without it, there is no module to prepare."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

DEPTH = 4
"""Steps from a scorer to its modules: a function, an object that it uses, a list of the object, a module."""


def is_module(value: Any) -> bool:
    """Whether a value is a torch module."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)


def is_module_class(value: Any) -> bool:
    """Whether a value is a class of torch modules."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, type) and issubclass(value, torch.nn.Module)


def prepare_modules(scorer: Any, device: str | None = None) -> None:
    """Put the torch modules of a scorer in evaluation mode and on `device`.

    These are the scorer itself, if it is one, and those that it refers to: attributes of an object, variables of a
    function, and entries of lists and dicts among them, up to `DEPTH` steps. `scorer` may be a method of an object.
    Modules stay where they are if `device` is None, if the object that has them has an attribute `device` of its own,
    for then it also places its inputs, and if they are spread over several devices.
    """
    for module, stays in _modules_in(scorer, False, DEPTH, set()):
        module.eval()
        if device is not None and not stays and not hasattr(module, "hf_device_map"):
            module.to(device)


def _modules_in(value: Any, stays: bool, depth: int, seen: set[int]) -> Iterator[tuple[Any, bool]]:
    """The modules that a value is or refers to, and whether they stay on their device."""
    if id(value) in seen or inspect.isclass(value) or inspect.ismodule(value):
        return
    seen.add(id(value))
    attributes = getattr(value, "__dict__", {})
    stays = stays or "device" in attributes
    if is_module(value):
        yield value, stays
    elif depth:
        for held in _held_by(value, attributes):
            yield from _modules_in(held, stays, depth - 1, seen)


def _held_by(value: Any, attributes: Mapping[str, Any]) -> Iterable[Any]:
    """What a container has, a function uses, or an object has as attributes."""
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return value
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if inspect.ismethod(value):
        return [value.__self__, value.__func__]
    if inspect.isfunction(value):
        return [*_captured(value), *_used_globals(value)]
    return [] if inspect.isroutine(value) else list(attributes.values())


def _captured(function: Any) -> list[Any]:
    """The variables of outer functions that a function uses; one without a value yet is left out."""
    found = []
    for cell in function.__closure__ or ():
        with suppress(ValueError):
            found.append(cell.cell_contents)
    return found


def _used_globals(function: Any) -> list[Any]:
    """The torch modules among the global variables that a function names."""
    found = [function.__globals__.get(name) for name in function.__code__.co_names]
    return [value for value in found if is_module(value) or isinstance(value, list | dict)]


@contextmanager
def without_gradients() -> Iterator[None]:
    """Disable gradients of torch in this thread, if torch is imported."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    with torch.no_grad():
        yield
