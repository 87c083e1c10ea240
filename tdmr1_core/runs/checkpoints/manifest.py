"""The manifest of a checkpoint: size and SHA-256 of every file and of the list itself, to detect damage."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from io import BufferedReader
from pathlib import Path

from tdmr1_core.durable_files import MALFORMED
from tdmr1_core.errors import Tdmr1Error
from tdmr1_rewards.texts.documents import parse_json

MANIFEST = "manifest.json"


def describe(files: Mapping[str, bytes]) -> bytes:
    """The manifest of files by name."""
    listed = {name: {"bytes": len(content), "sha256": _hash(content)} for name, content in files.items()}
    return (json.dumps({"files": listed, "sha256": _hash_of_list(listed)}, indent=1) + "\n").encode()


def read_intact(folder: Path, names: Collection[str], optional: Collection[str] = ()) -> dict[str, bytes]:
    """The named files of a folder, checked against the manifest; `optional` files only if the manifest lists them.

    Raises Tdmr1Error for a file that is missing or does not match.
    """
    contents = {}
    with _all_opened(folder, names, optional) as files:
        for name, (file, listed) in files.items():
            contents[name] = content = file.read()
            _check(folder / name, listed, len(content), _hash(content))
    return contents


def check_intact(folder: Path, names: Collection[str], optional: Collection[str] = ()) -> None:
    """Check files as `read_intact` does, without keeping them in memory. Raises the same Tdmr1Error."""
    with _all_opened(folder, names, optional) as files:
        for name, (file, listed) in files.items():
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            _check(folder / name, listed, file.tell(), digest)


@contextmanager
def _all_opened(
    folder: Path, names: Collection[str], optional: Collection[str]
) -> Iterator[dict[str, tuple[BufferedReader, Mapping[str, object]]]]:
    """Each file with its entry in the manifest. A run that deletes the folder meanwhile does not disturb the reader."""
    listed = _listed(folder, names)
    wanted = (*names, *(name for name in optional if name in listed))
    with ExitStack() as closing:
        yield {name: (closing.enter_context(_opened(folder / name)), listed[name]) for name in wanted}


def _listed(folder: Path, names: Collection[str]) -> dict[str, dict[str, object]]:
    path = folder / MANIFEST
    try:
        document = parse_json(_read(path))
        listed = {str(name): dict(entry) for name, entry in document["files"].items()}
        if document["sha256"] == _hash_of_list(listed) and set(names) <= listed.keys():
            return listed
    except MALFORMED:
        pass
    raise _damaged(path, "is damaged: it is not a complete manifest")


def _check(path: Path, listed: Mapping[str, object], size: int, digest: str) -> None:
    if size != listed.get("bytes"):
        raise _damaged(path, f"is damaged: it has {size} bytes, expected {listed.get('bytes')}")
    if digest != listed.get("sha256"):
        raise _damaged(path, "is damaged: its SHA-256 is not the one in the manifest")


def _read(path: Path) -> bytes:
    with _opened(path) as file:
        return file.read()


@contextmanager
def _opened(path: Path) -> Iterator[BufferedReader]:
    """Open a file of a checkpoint. Raises Tdmr1Error if it is missing, unreadable, a link or not a regular file."""
    if path.is_symlink():
        raise _damaged(path, "is a link")
    if path.exists() and not path.is_file():
        raise _damaged(path, "is not a regular file")
    try:
        with path.open("rb") as file:
            yield file
    except FileNotFoundError as error:
        raise _damaged(path, "is missing") from error
    except OSError as error:
        raise _damaged(path, f"cannot be read: {error.strerror}") from error


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _hash_of_list(listed: object) -> str:
    return _hash(json.dumps(listed, sort_keys=True).encode())


def _damaged(path: Path, reason: str) -> Tdmr1Error:
    return Tdmr1Error(
        f"{path} {reason}",
        "use an earlier checkpoint: write its name into `checkpoints/latest`",
        code="checkpoint-damaged",
        values={"path": str(path), "reason": reason},
    )
