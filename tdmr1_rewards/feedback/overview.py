"""What the page shows to everyone: the open rounds, the progress of one of them, and the agreement of its judges."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from tdmr1_rewards.feedback.agreement import Agreement, agreement_of
from tdmr1_rewards.feedback.records import Progress, Round
from tdmr1_rewards.feedback.store import FeedbackStore

LARGE, AGE = 1000, 1.0
"""Number of items from which an overview is used again for AGE seconds, because reading it takes long."""


@dataclass(frozen=True)
class Overview:
    """The open rounds, newest first, the shown one with its progress, and the number of items that lack answers."""

    rounds: tuple[Round, ...]
    shown: Round | None
    progress: Progress
    agreement: Agreement
    unfinished: int
    read: float
    """When it was read, in seconds since the epoch."""


def read_overview(store: FeedbackStore) -> Overview:
    """The present overview. The newest round with items to judge is shown, or else the newest round."""
    now = time.time()
    rounds = store.open_rounds()
    progress = {each.id: store.progress(each.id) for each in rounds}
    open_items = [each for each in rounds if progress[each.id].done < progress[each.id].items]
    shown = next(iter(open_items or rounds), None)
    return Overview(
        tuple(rounds),
        shown,
        progress[shown.id] if shown else Progress(0, 0, 0),
        agreement_of(store.tallies(shown.id) if shown else ()),
        store.unfinished(),
        now,
    )


class SharedOverview:
    """An overview for many clients. One with many items may be AGE seconds old; requests do not wait for a new one."""

    def __init__(self, store: FeedbackStore) -> None:
        self._store = store
        self._reading = threading.Lock()
        self._last: tuple[float, Overview] | None = None

    def get(self) -> Overview:
        """The overview."""
        last = self._last
        if last is None or last[1].progress.items < LARGE:
            return self._read()
        if time.monotonic() - last[0] < AGE or not self._reading.acquire(blocking=False):
            return last[1]
        try:
            return self._read()
        finally:
            self._reading.release()

    def _read(self) -> Overview:
        overview = read_overview(self._store)
        self._last = (time.monotonic(), overview)
        return overview
