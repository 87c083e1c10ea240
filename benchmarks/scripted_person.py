"""A person who likes red pictures, and answers what a feedback folder offers as soon as it offers it."""

from __future__ import annotations

import secrets
import threading
from pathlib import Path

import numpy as np
from PIL import Image

from tdmr1_rewards.feedback.store import FeedbackStore

COLOURED = 90
"""A pixel is coloured where its channels differ by at least this much, of 255."""
STRENGTH = 1.6
"""A coloured pixel is red where its red is at least so many times its green, and its blue."""
MOST = 0.7
"""A picture is red where at least this share of its coloured pixels is."""


def is_red(image: np.ndarray) -> bool:
    """Whether what is drawn in a picture, uint8 (H, W, 3), is red; not for a picture without colour."""
    pixels = np.asarray(image, dtype=int).reshape(-1, 3)
    pixels = pixels[pixels.max(axis=1) - pixels.min(axis=1) >= COLOURED]
    red, green, blue = pixels.T
    return len(pixels) > 0 and float(((red >= STRENGTH * green) & (red >= STRENGTH * blue)).mean()) >= MOST


class ScriptedPerson:
    """Answers in a thread, likes red pictures, and stops after `limit` answers; `given` counts them.

    With `chance`, an answer is a coin's instead.
    """

    def __init__(self, folder: Path, limit: int | None = None, *, chance: bool = False, seed: int = 0) -> None:
        self.given = 0
        self._folder = folder
        self._limit = limit
        self._coin = np.random.default_rng(seed) if chance else None
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
        while self._limit is not None and self.given < self._limit:
            self._end.wait(0.05)

    def _answer(self) -> None:
        store = FeedbackStore(self._folder)
        while not self._end.wait(0.1):
            wanted = 32 if self._limit is None else min(32, self._limit - self.given)
            for offer in store.next_items("scripted", wanted) if wanted else ():
                path = store.image_path(offer.item.hash)
                assert path is not None
                with Image.open(path) as picture:
                    likes = is_red(np.asarray(picture))
                if self._coin is not None:
                    likes = bool(self._coin.random() < 0.5)
                store.give(
                    key=secrets.token_hex(8),
                    item_id=offer.item.id,
                    round_id=offer.round.id,
                    person="scripted",
                    answer="like" if likes else "dislike",
                )
                self.given += 1
        store.close()
