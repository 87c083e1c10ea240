"""The manifest of a checkpoint: size and SHA-256 of every file and of itself, so that damage is known before use."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path

from tdmr1_core.errors import Tdmr1Error

MANIFEST = "manifest.json"


def describe(files: Mapping[str, bytes]) -> bytes:
    """The manifest of files by name."""
    listed = {name: {"bytes": len(content), "sha256": _hash(content)} for name, content in files.items()}
    return (json.dumps({"files": listed, "sha256": _hash_of_list(listed)}, indent=1) + "\n").encode()


def read_intact(folder: Path, names: Collection[str], optional: Collection[str] = ()) -> dict[str, bytes]:
    """The named files of a folder, if each is what the manifest says; `optional` ones only if it lists them.

    Raises Tdmr1Error that names one that is not.
    """
    listed = _listed(folder, names)
    wanted = (*names, *(name for name in optional if name in listed))
    return {name: _read_one(folder / name, listed[name]) for name in wanted}


def _listed(folder: Path, names: Collection[str]) -> dict[str, dict[str, object]]:
    path = folder / MANIFEST
    try:
        document = json.loads(_read(path))
        if document["sha256"] == _hash_of_list(document["files"]) and set(names) <= set(document["files"]):
            return dict(document["files"])
    except (ValueError, KeyError, TypeError):
        pass
    raise _damaged(f"{path} is damaged")


def _read_one(path: Path, listed: Mapping[str, object]) -> bytes:
    content = _read(path)
    if len(content) != listed.get("bytes"):
        raise _damaged(f"{path} has {len(content)} bytes, not {listed.get('bytes')}")
    if _hash(content) != listed.get("sha256"):
        raise _damaged(f"{path} is damaged: its content is not what was written")
    return content


def _read(path: Path) -> bytes:
    if path.is_symlink():
        raise _damaged(f"{path} is a link")
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise _damaged(f"{path} is missing") from error
    except OSError as error:
        raise _damaged(f"{path} can't be read: {error.strerror}") from error


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _hash_of_list(listed: object) -> str:
    return _hash(json.dumps(listed, sort_keys=True).encode())


def _damaged(message: str) -> Tdmr1Error:
    return Tdmr1Error(message, "use an earlier checkpoint: write its name into `checkpoints/latest`")
