"""Durable writes, the lock of a run folder, and checks of the links in it."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from tdmr1_core.errors import Tdmr1Error

LOCK = ".lock"
IN_THE_WAY = "move {file} to another place: something else must be written there"
REMEDIES = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some space there, or ask for a larger quota",
    errno.EFBIG: "raise the limit of file sizes (`ulimit -f`)",
    errno.EROFS: "make it writable",
    errno.EACCES: "make it writable",
    errno.EPERM: "make it writable",
    errno.EIO: "check the disk for hardware errors",
    errno.ENOENT: "check whether the folder was removed or moved",
    errno.EISDIR: IN_THE_WAY,
    errno.EEXIST: IN_THE_WAY,
    errno.ENOTDIR: IN_THE_WAY,
}
"""The hint for each disk error. Every other OSError has another cause and is not translated."""
MALFORMED = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
"""Exceptions raised while JSON from outside is converted to our types."""


@contextmanager
def translate_write_errors(path: Path) -> Iterator[None]:
    """Turn a disk error inside the block into a Tdmr1Error that names a file or folder, with a hint."""
    try:
        yield
    except OSError as error:
        if error.errno not in REMEDIES:
            raise
        hint = REMEDIES[error.errno].format(file=error.filename2 or error.filename)
        raise Tdmr1Error(
            f"{path} cannot be written: {error.strerror}",
            hint,
            code="not-writable",
            values={"path": str(path), "reason": error.strerror},
        ) from error


def write_durable(path: Path, content: bytes) -> None:
    """Write a file and flush it to the disk. A new file survives a crash only after `flush_folder` on its folder."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace_durable(path: Path, content: bytes) -> None:
    """Replace the content of a file atomically: a crash leaves either the old or the new content."""
    _replace_together({path: content})


def write_results(files: Mapping[Path, bytes]) -> None:
    """Write the files of a command's result, all or none, and create their folders.

    A former file is replaced only when the new content of all files is on the disk; the target of a link is replaced,
    not the link, and a device or pipe is written to. Raises Tdmr1Error if a file cannot be written.
    """
    regular: dict[Path, bytes] = {}
    for path, content in files.items():
        with translate_write_errors(path):
            if path.exists() and not path.is_file() and not path.is_dir():
                path.write_bytes(content)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                regular[path.resolve()] = content
    with translate_write_errors(Path(os.path.commonpath(files))):
        _replace_together(regular)


def _replace_together(files: Mapping[Path, bytes]) -> None:
    """Write every content beside its file, then rename all. A failure before the first rename leaves no trace."""
    building = {path: path.with_name(f".{path.name}.tmp") for path in files}
    try:
        for path, content in files.items():
            write_durable(building[path], content)
        for path in files:
            os.replace(building[path], path)
    except BaseException:
        for unfinished in building.values():
            with suppress(OSError):
                unfinished.unlink()
        raise
    for folder in dict.fromkeys(path.parent for path in files):
        flush_folder(folder)


def make_durable_folder(folder: Path) -> None:
    """Create a folder if it does not exist, and flush its name to the disk."""
    if not folder.is_dir():
        folder.mkdir(parents=True)
        flush_folder(folder.parent)


def append_durable(path: Path, content: bytes) -> None:
    """Append to a file and flush it to the disk, and the folder too if the file is new."""
    is_new = not path.exists()
    with path.open("ab") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Flush the names of the files in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock_run(folder: Path) -> FileLock:
    """Lock a run folder for this process. The lock ends when it is released or when the process ends for any reason.

    Raises Tdmr1Error if another process holds the lock, if the lock file is a link, or if the folder cannot be written.
    """
    if (folder / LOCK).is_symlink():
        raise _link_error(folder / LOCK, f"the lock file {folder / LOCK} is a link", "remove it")
    lock = FileLock(folder / LOCK)
    with translate_write_errors(folder):
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise Tdmr1Error(
                f"the run folder {folder} is locked by another process",
                "wait until that process ends, or stop it: two processes cannot write to the same run",
                code="run-folder-locked",
                values={"folder": str(folder)},
            ) from error
    return lock


def check_links(folder: Path) -> None:
    """Check that a folder and its subfolders hold only files, folders and links to targets inside the folder.

    Raises Tdmr1Error for a link to the outside or to itself, and for a pipe, socket or device: reading it may not end.
    """
    root = folder.resolve()
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent, name)
            try:
                mode = path.lstat().st_mode
            except FileNotFoundError:  # a run that is in progress has removed it
                continue
            if stat.S_ISLNK(mode):
                _check_link(path, root)
            elif name in files and not stat.S_ISREG(mode):
                raise _link_error(path, f"{path} is neither a file nor a folder", "move it out of the folder")


def _check_link(path: Path, root: Path) -> None:
    try:
        target = path.resolve()
    except (OSError, RuntimeError) as error:
        raise _link_error(path, f"the link {path} points to itself", "remove it") from error
    if not target.is_relative_to(root):
        raise _link_error(
            path, f"the link {path} points to {target}, outside the folder {root}", "replace the link by its target"
        )


def _link_error(path: Path, message: str, hint: str) -> Tdmr1Error:
    return Tdmr1Error(message, hint, code="link-outside", values={"path": str(path)})


def check_writable(folder: Path, hint: str = "choose another --output") -> None:
    """Raise Tdmr1Error, with this hint, if a folder cannot be created or written, before any long work."""
    existing = folder.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        reason = f"{existing} is not a folder"
    elif not os.access(existing, os.W_OK):
        reason = f"you have no write permission for {existing}"
    else:
        return
    raise Tdmr1Error(
        f"{folder} cannot be written: {reason}",
        hint,
        code="not-writable",
        values={"folder": str(folder), "existing": str(existing)},
    )
