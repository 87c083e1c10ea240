"""Imports an object from a file or a module. Standard library only, because workers in other environments use it."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from tdmr1_rewards.calling.user_code import describe_raised
from tdmr1_rewards.errors import Tdmr1Error, close_match_hint


def load_from_file(path: Path, attribute: str) -> Any:
    """Import `attribute` from a Python file.

    The file is imported once, as a module with a private name. Its folder is on sys.path during the import only. Raises
    Tdmr1Error if the file is missing, cannot be imported, or has no such attribute.
    """
    return find_attribute(load_file(path), attribute, str(path))


def load_from_module(module: str, attribute: str) -> Any:
    """Import `attribute` from a module. The current folder is on sys.path, as with `python -m`.

    Raises Tdmr1Error if the module does not exist, cannot be imported, or has no such attribute.
    """
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise _import_failed(f"the module {module}", error) from error
        raise Tdmr1Error(
            f"there is no module {error.name!r}",
            f"install its package, or run the command in the folder that contains the module (now {here})",
            code="reward-import",
            values={"module": error.name},
        ) from error
    except (Exception, SystemExit) as error:
        raise _import_failed(f"the module {module}", error) from error
    return find_attribute(loaded, attribute, f"the module {module}")


def load_file(path: Path) -> ModuleType:
    """Import a Python file once, as a module. Raises Tdmr1Error if it is missing or cannot be imported."""
    path = path.absolute()
    if not path.is_file():
        neighbours = [entry.name for entry in path.parent.glob("*.py")] if path.parent.is_dir() else []
        hint = close_match_hint(path.name, neighbours) if neighbours else "check the path"
        raise Tdmr1Error(f"there is no file {path}", hint, code="reward-import", values={"file": str(path)})
    name = private_name(path)
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, "every file that ends in .py has a loader"
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with _importable(path.parent):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _import_failed(f"the file {path}", error) from error
    return module


def _import_failed(what: str, error: BaseException) -> Tdmr1Error:
    found = describe_raised(error)
    return Tdmr1Error(
        f"{what} cannot be imported: {found}",
        found.hint("correct it, or install the modules that it imports"),
        code="reward-import",
        values={"source": what, **found.values},
    )


def private_name(path: Path) -> str:
    """The module name of a file. It contains a hash of the path, so that no other module has the same name."""
    digest = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:12]
    stem = "".join(letter if letter.isalnum() else "_" for letter in path.stem)
    return f"_tdmr1_file_{stem}_{digest}"


def find_attribute(holder: Any, attribute: str, owner: str) -> Any:
    """`holder.a.b` for the attribute "a.b". Raises Tdmr1Error, with a similar name as hint, if it does not exist."""
    found = holder
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except Tdmr1Error:  # of `session.py`
            raise
        except AttributeError:
            public = [name for name in dir(found) if not name.startswith("_") and callable(getattr(found, name, None))]
            raise Tdmr1Error(
                f"{owner} has no {part!r}",
                close_match_hint(part, public),
                code="reward-import",
                values={"source": owner, "attribute": part},
            ) from None
        except Exception as error:  # of a property, or of `__getattr__` of a module
            raise _import_failed(f"{part!r} of {owner}", error) from error
    return found


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Put a folder on sys.path for the duration of the context."""
    entry = str(folder)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        sys.path.remove(entry)
