"""Loads what a file or a module holds under a name, with the standard library alone: so does a worker elsewhere."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from tdmr1_rewards.errors import Tdmr1Error, close_match_hint, describe_error


def load_from_file(path: Path, attribute: str) -> Any:
    """What a Python file holds under `attribute`.

    The file is run once, as a module of a private name. Its folder is importable while it runs and not afterwards.
    Raises Tdmr1Error if the file is missing or cannot be run, and if it has no such attribute.
    """
    return find_attribute(load_file(path), attribute, str(path))


def load_from_module(module: str, attribute: str) -> Any:
    """What an importable module holds under `attribute`; the current folder is importable, as in `python -m`.

    Raises Tdmr1Error if there is no such module, if it cannot be imported, and if it has no such attribute.
    """
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise Tdmr1Error(f"the module {module} could not be imported: {describe_error(error)}") from error
        raise Tdmr1Error(
            f"there is no module {error.name!r}",
            f"install the package it is in, or start from the folder that holds it (now {here})",
        ) from error
    except (Exception, SystemExit) as error:
        raise Tdmr1Error(f"the module {module} could not be imported: {describe_error(error)}") from error
    return find_attribute(loaded, attribute, f"the module {module}")


def load_file(path: Path) -> ModuleType:
    """A Python file as a module; the same one each time. Raises Tdmr1Error if it is missing or cannot be run."""
    path = path.absolute()
    if not path.is_file():
        neighbours = [entry.name for entry in path.parent.glob("*.py")] if path.parent.is_dir() else []
        hint = close_match_hint(path.name, neighbours) if neighbours else "check the path"
        raise Tdmr1Error(f"there is no file {path}", hint)
    name = private_name(path)
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, "a file that ends in .py has a loader"
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with _importable(path.parent):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        line = f", line {error.lineno}," if isinstance(error, SyntaxError) else ""
        raise Tdmr1Error(f"the file {path}{line} could not be run: {describe_error(error)}") from error
    return module


def private_name(path: Path) -> str:
    """The name under which a file is a module: no import statement can mean it by chance."""
    digest = hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:12]
    stem = "".join(letter if letter.isalnum() else "_" for letter in path.stem)
    return f"_tdmr1_file_{stem}_{digest}"


def find_attribute(holder: Any, attribute: str, owner: str) -> Any:
    """`holder.a.b` for "a.b". Raises Tdmr1Error, with a close match, where there is none."""
    found = holder
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = [name for name in dir(found) if not name.startswith("_") and callable(getattr(found, name, None))]
            raise Tdmr1Error(f"{owner} has no {part!r}", close_match_hint(part, public))
        found = getattr(found, part)
    return found


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """A folder on sys.path, for as long as this lasts."""
    entry = str(folder)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        sys.path.remove(entry)
