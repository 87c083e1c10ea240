"""Asks a process of another environment about a reward. A file or module is imported only there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tdmr1_rewards.calling.process import request_from
from tdmr1_rewards.calling.reference import Reference, portable, reference_of
from tdmr1_rewards.registry import RegisteredReward
from tdmr1_rewards.sources.parsing import Source


def ask_about(
    registered: RegisteredReward, source: Source, do: str, python: Path, options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The answer of a process of the interpreter `python` to the request `do` (of worker.py) about a reward.

    Raises Tdmr1Error if the interpreter cannot be started or the request fails.
    """
    reference = replace(reference_of(registered.spec, options or {}), options_model=None)
    known = {"spec": asdict(registered.spec), "provenance": asdict(registered.provenance)}
    return request_from(
        python.absolute(),
        do,
        portable_from_here(reference, python),
        str(registered),
        source=str(source.absolute()),
        registered=known if source.kind == "registered" else None,
    )


def describe(source: Source, python: Path) -> dict[str, Any]:
    """Let a process of another environment import a file or module and describe the object: its spec, and taken_as."""
    factory = in_file(source, source.attribute) if source.kind == "file" else str(source)
    owner = f"reward {source.name!r} (from {source.place})"
    reference = portable_from_here(Reference(factory=factory), python)
    return request_from(python, "describe", reference, owner, source=str(source))


def in_file(source: Source, attribute: str) -> dict[str, str]:
    """An object in the file of a source, as the factory of a Reference."""
    return {"file": str(source.path.absolute()), "attr": attribute}


def portable_from_here(reference: Reference, python: Path | None) -> Reference:
    """A portable reference; a module that is not found elsewhere is searched for in the current folder."""
    placed = portable(reference, python)
    if python is None or placed.paths or placed.modules or not isinstance(reference.factory, str):
        return placed
    return replace(placed, paths=[str(Path.cwd())])
