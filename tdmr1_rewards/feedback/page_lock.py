"""One `tdmr1 label` for each feedback folder: two would close the rounds of each other."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from tdmr1_rewards.errors import RewardWarning, Tdmr1Error

LOCK, ADDRESS = "label.lock", "label.url"
WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""Errors of a file system that has no locks."""


@contextmanager
def page_lock(folder: Path) -> Iterator[PageAddress]:
    """Lock a feedback folder during the block. The lock ends with the process, however it ends.

    The folder is created if it is missing. Raises Tdmr1Error, with the address of the page if it is known, if another
    process holds the lock. A file system without locks causes a warning.
    """
    lock, address = FileLock(folder / LOCK), PageAddress(folder / ADDRESS)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        url = address.read()
        raise Tdmr1Error(
            f"another `tdmr1 label` serves {folder.parent}" + (f" at {url}" if url else ""),
            "open its page in the browser, or stop it first",
            code="feedback-store",
            values={"path": str(folder), "url": url},
        ) from error
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in WITHOUT_LOCKS:
            raise Tdmr1Error(
                f"cannot write to the folder {folder}: {error.strerror}",
                "use a folder that you can write to",
                code="not-writable",
                values={"path": str(folder), "reason": error.strerror},
            ) from error
        message = f"the file system of {folder} has no locks: do not run `tdmr1 label` twice on this folder"
        warnings.warn(RewardWarning(message, code="feedback-store", values={"path": str(folder)}), stacklevel=3)
    address.remove()  # of a process that was killed
    try:
        yield address
    finally:
        address.remove()
        lock.release()


class PageAddress:
    """The file with the address of the page, for a second process. Only its owner can read it: it has the token."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, url: str) -> None:
        """Write the address of the page that runs now."""
        self.remove()
        with open(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(url)

    def read(self) -> str | None:
        """The address; None while the page starts."""
        with suppress(OSError):
            return self._path.read_text(encoding="utf-8") or None
        return None

    def remove(self) -> None:
        """Remove the file."""
        self._path.unlink(missing_ok=True)
