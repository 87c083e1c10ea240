"""Reads the images of a folder into an open round, so that people judge the first ones while the others are read."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tdmr1_rewards.calling.image_files import read_image
from tdmr1_rewards.errors import Tdmr1Error
from tdmr1_rewards.feedback.records import NewItem
from tdmr1_rewards.feedback.store import FeedbackStore

START = 0.2
"""Seconds for which images are read before the page appears; at least one image is read."""
BATCH = 16
"""Images that are added to the round at once."""
NAMED = 20
"""Largest number of skipped images that are named."""


class FolderScan:
    """Adds the images of `groups`, whose items are files, to a round. `skip` gets a sentence for each broken image."""

    def __init__(
        self,
        store: FeedbackStore,
        folder: Path,
        groups: Sequence[Sequence[NewItem]],
        *,
        run: str,
        judges: int,
        skip: Callable[[str], None],
    ) -> None:
        self._store = store
        self._folder = folder
        self._skip = skip
        self._items = [(team, item) for team, group in enumerate(groups) for item in group]
        source = [[team, item.prompt, *_identity(folder, Path(item.image))] for team, item in self._items]
        self._round = store.open_growing_round(folder.resolve().name, source, run=run, judges=judges)
        self._known = store.stored_positions(self._round.id)
        self._next = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._read_rest, name="scan", daemon=True)
        self.skipped = 0
        self.error: Tdmr1Error | None = None

    @property
    def total(self) -> int:
        """The number of images that were listed."""
        return len(self._items)

    @property
    def read(self) -> int:
        """The number of images that were read or skipped."""
        return self._next

    def start(self) -> None:
        """Read the first images, and start a thread that reads the others. Raises Tdmr1Error if none can be read."""
        until = time.monotonic() + START
        while self._next < self.total and (time.monotonic() < until or self.skipped == self._next):
            self._read_batch(1 if self._next < BATCH else BATCH)
        if self.skipped == self.total:
            raise Tdmr1Error(
                f"none of the {self.total} images in {self._folder} can be read, such as {self._items[0][1].image}",
                "use PNG, JPEG or WebP files",
                code="file-unreadable",
                values={"path": str(self._folder), "images": self.total},
            )
        self._report()
        self._thread.start()

    def stop(self) -> None:
        """Stop reading, and wait until the thread has ended."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _read_rest(self) -> None:
        try:
            while self._next < self.total and not self._ended.is_set():
                self._read_batch(BATCH)
                self._report()
        except Tdmr1Error as error:
            self.error = error
            self._skip(f"stopped reading images after {self.read} of {self.total}: {error.message}")
        if self.skipped:
            self._skip(f"{self.skipped} of {self.total} images cannot be read and were skipped")

    def _read_batch(self, count: int) -> None:
        rows, first = [], self._next
        for position in range(first, min(first + count, self.total)):
            team, item = self._items[position]
            if position not in self._known:
                try:
                    rows.append((position, team, NewItem(read_image(item.image), item.prompt)))
                except Tdmr1Error as error:
                    self.skipped += 1
                    if self.skipped <= NAMED:
                        self._skip(f"{error.message}; it is skipped")
        if rows:
            self._store.add_items(self._round.id, rows)
        self._next = min(first + count, self.total)

    def _report(self) -> None:
        """Show the progress on the page."""
        left = self.read < self.total
        self._store.set_message(
            f"{self.read} of {self.total} images were read. More appear here automatically." if left else ""
        )


def _identity(folder: Path, path: Path) -> tuple[str, int, int]:
    """A file's path in the folder, size and time. If they are the same as before, the file is not read again."""
    try:
        found = path.stat()
    except OSError:  # removed since it was listed; it will be skipped
        return str(path), 0, 0
    return os.path.relpath(path, folder), found.st_size, found.st_mtime_ns
