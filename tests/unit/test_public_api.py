"""Compares the public API with a text file. `python tests/unit/test_public_api.py` rewrites the file."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

SNAPSHOT = Path(__file__).parents[1] / "golden" / "public_api.txt"
MODULES = ("tdmr1_rewards", "tdmr1_core", "tdmr1_rewards.hookspecs", "tdmr1_core.hookspecs")


def describe() -> str:
    """Every public name of the packages with its signature, and the methods of public classes."""
    lines = []
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        names = getattr(module, "__all__", None) or [name for name in vars(module) if name.startswith("tdmr1_")]
        for name in sorted(names):
            lines += _describe(f"{module_name}.{name}", getattr(module, name))
    return "\n".join(lines) + "\n"


def _describe(path: str, thing: object) -> list[str]:
    if not callable(thing):
        return [path]
    lines = [path + _signature(thing)]
    if inspect.isclass(thing) and not hasattr(thing, "model_fields"):
        for name, member in sorted(vars(thing).items()):
            if not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, (property, classmethod))):
                shown = "" if isinstance(member, property) else _signature(getattr(thing, name))
                lines.append(f"  {path}.{name}{shown}")
    return lines


def _signature(thing: object) -> str:
    try:
        return re.sub(r" at 0x[0-9a-f]+", "", str(inspect.signature(thing)))  # type: ignore[arg-type]
    except ValueError:
        return ""


def test_the_public_api_is_the_snapshot():
    assert describe() == SNAPSHOT.read_text(), "for an intended change, run: python tests/unit/test_public_api.py"


def test_unknown_names_are_attribute_errors():
    for module_name in ("tdmr1_rewards", "tdmr1_core"):
        with pytest.raises(AttributeError):
            importlib.import_module(module_name).nothing_of_this_name  # noqa: B018


if __name__ == "__main__":
    SNAPSHOT.write_text(describe())
