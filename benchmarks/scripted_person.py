"""A scripted person who likes red images and answers through the database of a feedback folder."""

from __future__ import annotations

import secrets
import threading
from pathlib import Path

import numpy as np
from PIL import Image

from tdmr1_rewards.feedback.store import FeedbackStore

COLORED = 90
"""A pixel is colored if its largest and smallest channel differ by at least this value (0 to 255)."""
RED_FACTOR = 1.6
"""A colored pixel is red if its red channel is at least this factor times green and times blue."""
RED_FRACTION = 0.7
"""An image is red if at least this fraction of its colored pixels is red."""


def is_red(image: np.ndarray) -> bool:
    """Whether the colored pixels of a uint8 image (H, W, 3) are red; False without colored pixels."""
    pixels = np.asarray(image, dtype=int).reshape(-1, 3)
    pixels = pixels[pixels.max(axis=1) - pixels.min(axis=1) >= COLORED]
    red, green, blue = pixels.T
    return len(pixels) > 0 and float(((red >= RED_FACTOR * green) & (red >= RED_FACTOR * blue)).mean()) >= RED_FRACTION


class ScriptedPerson:
    """Answers in a thread and stops after `limit` answers. `answers` is the number of answers so far.

    With `chance`, the answers are random.
    """

    def __init__(self, folder: Path, limit: int | None = None, *, chance: bool = False, seed: int = 0) -> None:
        self.answers = 0
        self._folder = folder
        self._limit = limit
        self._rng = np.random.default_rng(seed) if chance else None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._answer, daemon=True)

    def __enter__(self) -> ScriptedPerson:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def join(self) -> None:
        """Wait until the limit is reached."""
        while self._limit is not None and self.answers < self._limit:
            self._end.wait(0.05)

    def _answer(self) -> None:
        store = FeedbackStore(self._folder)
        while not self._end.wait(0.1):
            count = 32 if self._limit is None else min(32, self._limit - self.answers)
            for offer in store.next_items("scripted", count) if count else ():
                path = store.image_path(offer.item.hash)
                assert path is not None
                with Image.open(path) as image:
                    likes = is_red(np.asarray(image))
                if self._rng is not None:
                    likes = bool(self._rng.random() < 0.5)
                store.give(
                    key=secrets.token_hex(8),
                    item_id=offer.item.id,
                    round_id=offer.round.id,
                    person="scripted",
                    answer="like" if likes else "dislike",
                )
                self.answers += 1
        store.close()
