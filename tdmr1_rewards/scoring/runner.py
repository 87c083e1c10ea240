"""Scores batches of images with several rewards side by side, and puts their answers together."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import numpy as np

from tdmr1_rewards.api import RewardBatch
from tdmr1_rewards.calling.state import State
from tdmr1_rewards.errors import Tdmr1Error
from tdmr1_rewards.scoring.active_reward import ActiveReward, Answers, RewardWorker
from tdmr1_rewards.scoring.combine import applicability, normalised_sum, weighted_sum
from tdmr1_rewards.scoring.failures import Failure, RewardFailed

Combine = Literal["weighted_sum", "normalised"]

GRACE = 5.0
"""Seconds that `close` waits for calls that have begun before it leaves them behind."""


@dataclass(frozen=True)
class ScoredBatch:
    """The scores of N images: each list has length N.

    `total` is the combined score, None where a reward that applies could not judge, or none applies; `per_reward` has
    each reward's own scores by name, and `applies` which images it was asked about; `details` maps, for each image, a
    reward's name to what it told. `failures` are the calls that failed and were passed over.
    """

    total: list[float | None]
    per_reward: dict[str, list[float | None]]
    details: list[dict[str, Any]]
    applies: dict[str, list[bool]]
    failures: list[Failure]

    @property
    def failed(self) -> dict[str, int]:
        """How many images each reward failed on."""
        return {name: sum(len(f.batch) for f in self.failures if f.reward == name) for name in self.per_reward}

    @property
    def unjudged(self) -> dict[str, int]:
        """How many images each reward was asked about, did not fail on, and could not judge."""
        return {
            name: sum(on and score is None for on, score in zip(self.applies[name], scores, strict=True))
            - self.failed[name]
            for name, scores in self.per_reward.items()
        }


class RewardRunner:
    """Scores batches with several rewards, at most `workers` calls at once.

    Calls to one reward never overlap; different rewards run side by side. `device` is what a reward's `setup` is
    told. A batch must hold whole groups if the rewards are to be `normalised`. A reward that raises, answers what it
    should not or takes too long fails the whole batch with RewardFailed, or leaves its images without a score if it is
    to be skipped: a failure never becomes a number. Images of a call that stops a run are saved in its folder.
    Raises Tdmr1Error if a reward in a process of its own cannot be built.
    """

    def __init__(self, entries: Sequence[ActiveReward], combine: Combine, workers: int, device: str = "cpu") -> None:
        names = [entry.name for entry in entries]
        if not names:
            raise Tdmr1Error("there is no reward to score with", "name at least one")
        if len(set(names)) < len(names):
            raise Tdmr1Error(f"a reward is named twice in {', '.join(names)}")
        if combine not in get_args(Combine):
            raise Tdmr1Error(f"combine is {combine!r}, but must be {' or '.join(map(repr, get_args(Combine)))}")
        self._weights = {entry.name: entry.weight for entry in entries}
        self._combine = combine
        self._closing = threading.Event()
        self._slots: list[RewardWorker] = []
        gate = threading.Semaphore(workers)
        try:
            for entry in entries:
                self._slots.append(RewardWorker(entry, device, gate, self._closing))
        except BaseException:
            self.close()
            raise

    def set_up(self) -> None:
        """Set every reward up now instead of before its first batch. Raises Tdmr1Error if one cannot be."""
        for future in [slot.do(slot.set_up) for slot in self._slots]:
            future.result()

    def states(self) -> dict[str, State]:
        """What each reward remembers that has a state, and was set up: others remember nothing yet.

        Raises RewardFailed for one that can't tell it, or not as plain JSON data.
        """
        futures = {name: slot.do(slot.state) for name, slot in zip(self._weights, self._slots, strict=True)}
        found = {name: future.result() for name, future in futures.items()}
        return {name: state for name, state in found.items() if state is not None}

    def load_states(self, states: Mapping[str, State]) -> None:
        """Let rewards remember what they told. Raises Tdmr1Error for one that is not there or can't take it."""
        slots = dict(zip(self._weights, self._slots, strict=True))
        for name in states:
            if name not in slots:
                raise Tdmr1Error(f"there is a state of reward {name!r}, and no such reward", "name it as it was")
        for future in [slots[name].do(partial(slots[name].load_state, state)) for name, state in states.items()]:
            future.result()

    @contextmanager
    def unremembered(self) -> Iterator[None]:
        """Whatever is scored while this lasts leaves no trace in what rewards remember."""
        self.set_up()
        states = self.states()
        yield
        self.load_states(states)

    def score(self, batch: RewardBatch) -> ScoredBatch:
        """Score a batch whose images are one uint8 array (N, H, W, 3).

        Raises Tdmr1Error as the class says, and if failures that were passed over have left nothing.
        """
        scored = self.submit(batch).result()
        check_left([scored])
        return scored

    def submit(self, batch: RewardBatch) -> Future[ScoredBatch]:
        """Like `score`, without waiting: what goes wrong in a reward is raised by the future's `result()`.

        Whether anything is left after failures is for `check_left` to say, when all batches of an iteration are done.
        """
        _check_images(batch.images)
        if self._closing.is_set():
            raise Tdmr1Error("the rewards are closed")
        applies = applicability(batch.metadata, self._weights)
        parts = [slot.submit(batch, applies[name]) for name, slot in zip(applies, self._slots, strict=True)]
        return _gather(parts, lambda answers: self._scored(batch, applies, answers))

    def close(self) -> None:
        """Drop what has not begun, wait a little for calls that have, and close every reward.

        Raises the first failure to close.
        """
        if self._closing.is_set():
            return
        self._closing.set()
        for slot in self._slots:
            slot.stop()
        deadline = time.monotonic() + GRACE
        try:
            for slot in self._slots:
                slot.join(deadline)
            failures = [failure for slot in self._slots if (failure := slot.release()) is not None]
        except BaseException:  # a further Ctrl-C
            for slot in self._slots:
                slot.abort()
            raise
        if failures:
            raise failures[0]

    def __enter__(self) -> RewardRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _scored(self, batch: RewardBatch, applies: dict[str, list[bool]], answers: Sequence[Answers]) -> ScoredBatch:
        by_name = dict(zip(self._weights, answers, strict=True))
        per_reward = {name: answer.scores for name, answer in by_name.items()}
        if self._combine == "normalised":
            total = normalised_sum(per_reward, self._weights, batch.group_ids, applies=applies)
        else:
            total = weighted_sum(per_reward, self._weights, applies)
        details = [
            {name: dict(answer.details[i]) for name, answer in by_name.items() if answer.details[i]}
            for i in range(len(batch))
        ]
        return ScoredBatch(total, per_reward, details, applies, [f for answer in answers for f in answer.failures])


def check_left(parts: Sequence[ScoredBatch]) -> None:
    """Raise the failure that left nothing: no score of one reward, or no total, in all of the scored batches."""
    totals = [score for part in parts for score in part.total]
    for failure in (failure for part in reversed(parts) for failure in reversed(part.failures)):
        scores = [score for part in parts for score in part.per_reward[failure.reward]]
        if all(score is None for score in scores) or all(total is None for total in totals):
            error = failure.saved()
            raise RewardFailed(f"{error.message}; that leaves no image with a reward", error.hint) from error


def _gather(parts: Sequence[Future[Answers]], finish: Callable[[list[Answers]], ScoredBatch]) -> Future[ScoredBatch]:
    """A future of `finish` of all parts' results. No thread waits for it, so the pool cannot lock up."""
    whole: Future[ScoredBatch] = Future()
    whole.set_running_or_notify_cancel()
    remaining = len(parts)
    lock = threading.Lock()

    def part_done(_: Future[Answers]) -> None:
        nonlocal remaining
        with lock:
            remaining -= 1
            if remaining:
                return
        try:
            whole.set_result(finish([part.result() for part in parts]))
        except BaseException as error:
            whole.set_exception(error)

    for part in parts:
        part.add_done_callback(part_done)
    return whole


def _check_images(images: Any) -> None:
    if not isinstance(images, np.ndarray):
        raise Tdmr1Error(f"images to score are a {type(images).__name__}, but must be one uint8 array (N, H, W, 3)")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise Tdmr1Error(f"images to score are {images.dtype} {images.shape}, but must be uint8 (N, H, W, 3)")
