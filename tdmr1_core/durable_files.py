"""A run folder on a disk that may be full, read-only or shared: writes that last, one writer at a time, no way out."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from tdmr1_core.errors import Tdmr1Error

LOCK = ".lock"
IN_THE_WAY = "{file} is in the way: move it elsewhere"
REMEDIES = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some space there, or ask for a larger quota",
    errno.EFBIG: "raise the limit of file sizes (`ulimit -f`)",
    errno.EROFS: "make it writable",
    errno.EACCES: "make it writable",
    errno.EPERM: "make it writable",
    errno.EIO: "look after that disk",
    errno.ENOENT: "was it removed or moved?",
    errno.EISDIR: IN_THE_WAY,
    errno.EEXIST: IN_THE_WAY,
    errno.ENOTDIR: IN_THE_WAY,
}
"""What to do about each error of a disk; any other OSError is not the disk's."""
MALFORMED = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
"""What comes of turning JSON that somebody else wrote into something of ours."""


@contextmanager
def translate_write_errors(folder: Path) -> Iterator[None]:
    """Raise Tdmr1Error, which says what to do, for a folder that can't be written."""
    try:
        yield
    except OSError as error:
        if error.errno not in REMEDIES:
            raise
        hint = REMEDIES[error.errno].format(file=error.filename2 or error.filename)
        raise Tdmr1Error(f"{folder} can't be written: {error.strerror}", hint) from error


def write_durable(path: Path, content: bytes) -> None:
    """Write a file and wait until the disk has it; its name lasts once its folder is flushed."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace_durable(path: Path, content: bytes) -> None:
    """Give a file another content, so that at any time it has the whole of one of the two."""
    building = path.with_name(f".{path.name}.tmp")
    write_durable(building, content)
    os.replace(building, path)
    flush_folder(path.parent)


def make_durable_folder(folder: Path) -> None:
    """Make a folder where there is none, and wait until the disk has its name."""
    if not folder.is_dir():
        folder.mkdir(parents=True)
        flush_folder(folder.parent)


def append_durable(path: Path, content: bytes) -> None:
    """Add to the end of a file, and wait until the disk has it, and the name of a new one."""
    is_new = not path.exists()
    with path.open("ab") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Wait until the disk has the names in a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock_run(folder: Path) -> FileLock:
    """Be the only writer of a run folder until the lock is released or the process ends, however it does.

    Raises Tdmr1Error if another process is, or the folder can't be written.
    """
    lock = FileLock(folder / LOCK)
    with translate_write_errors(folder):
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise Tdmr1Error(
                f"another process is at work on the run folder {folder}", "wait for it or stop it; two would mix up"
            ) from error
    return lock


def check_links(folder: Path) -> None:
    """Raise Tdmr1Error for a link in a folder that leads out of it, and for what is neither a file nor a folder.

    What is read or written must be the folder's, and come to an end.
    """
    inside = folder.resolve()
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place, name)
            if path.is_symlink():
                _check_link(path, inside)
            elif name in files and path.exists() and not path.is_file():
                raise Tdmr1Error(f"{path} is neither a file nor a folder", "move it away")


def _check_link(path: Path, inside: Path) -> None:
    try:
        target = path.resolve()
    except (OSError, RuntimeError) as error:
        raise Tdmr1Error(f"{path} is a link that leads to itself", "remove it") from error
    if not target.is_relative_to(inside):
        raise Tdmr1Error(f"{path} is a link to {target}, outside of the folder", "put what it leads to in its place")
