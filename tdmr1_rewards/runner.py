"""Runs rewards on batches of images: beside the caller, in the sizes they ask for, and trusting no answer unchecked."""

from __future__ import annotations

import math
import reprlib
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from numbers import Real
from typing import Any, Literal, get_args

import numpy as np

from tdmr1_rewards.api import Reward, RewardBatch, RewardResult, RewardSpec
from tdmr1_rewards.combine import normalised_sum, weighted_sum
from tdmr1_rewards.errors import Tdmr1Error
from tdmr1_rewards.registry import Provenance

Combine = Literal["weighted_sum", "normalised"]


@dataclass(frozen=True)
class ActiveReward:
    """A reward that is in use: `name` in reports, `weight` in the total, and the object itself with its origin."""

    name: str
    weight: float
    spec: RewardSpec
    reward: Reward
    provenance: Provenance

    def __str__(self) -> str:
        return f"reward {self.name!r} (from {self.provenance})"


@dataclass(frozen=True)
class ScoredBatch:
    """The scores of N images: each list has length N.

    `total` is the combined score, None where any reward could not judge; `per_reward` has each reward's own scores
    by name; `details` maps, for each image, a reward's name to what it told.
    """

    total: list[float | None]
    per_reward: dict[str, list[float | None]]
    details: list[dict[str, Any]]


@dataclass(frozen=True)
class _Answers:
    """One reward's checked answer to N images."""

    scores: list[float | None]
    details: list[Mapping[str, Any] | None]


class RewardRunner:
    """Scores batches with several rewards, in `workers` threads.

    Calls to one reward never overlap; different rewards run side by side. `device` is what a reward's `setup` is
    told. A batch must hold whole groups if the rewards are to be `normalised`. A reward that raises or answers what it
    should not fails the whole batch with a Tdmr1Error: a failure never becomes a score.
    """

    def __init__(self, entries: Sequence[ActiveReward], combine: Combine, workers: int, device: str = "cpu") -> None:
        names = [entry.name for entry in entries]
        if not names:
            raise Tdmr1Error("there is no reward to score with", "name at least one")
        if len(set(names)) < len(names):
            raise Tdmr1Error(f"a reward is named twice in {', '.join(names)}")
        if combine not in get_args(Combine):
            raise Tdmr1Error(f"combine is {combine!r}, but must be {' or '.join(map(repr, get_args(Combine)))}")
        self._slots = [_Slot(entry, device) for entry in entries]
        self._weights = {entry.name: entry.weight for entry in entries}
        self._combine = combine
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="reward")

    def score(self, batch: RewardBatch) -> ScoredBatch:
        """Score a batch whose images are one uint8 array (N, H, W, 3). Raises Tdmr1Error as the class says."""
        return self.submit(batch).result()

    def submit(self, batch: RewardBatch) -> Future[ScoredBatch]:
        """Like `score`, without waiting: what goes wrong in a reward is raised by the future's `result()`."""
        _check_images(batch.images)
        parts = [self._pool.submit(slot.answer, batch) for slot in self._slots]
        return _gather(parts, lambda answers: self._scored(batch, answers))

    def close(self) -> None:
        """Drop what has not begun, wait for what has, and close every reward; then raise the first failure to close."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        failures = [failure for slot in self._slots if (failure := slot.close()) is not None]
        if failures:
            raise failures[0]

    def __enter__(self) -> RewardRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _scored(self, batch: RewardBatch, answers: Sequence[_Answers]) -> ScoredBatch:
        by_name = dict(zip(self._weights, answers, strict=True))
        per_reward = {name: answer.scores for name, answer in by_name.items()}
        if self._combine == "normalised":
            total = normalised_sum(per_reward, self._weights, batch.group_ids)
        else:
            total = weighted_sum(per_reward, self._weights)
        details = [
            {name: dict(told) for name, answer in by_name.items() if (told := answer.details[i]) is not None}
            for i in range(len(batch))
        ]
        return ScoredBatch(total, per_reward, details)


class _Slot:
    """One reward, set up once and called by one thread at a time."""

    def __init__(self, entry: ActiveReward, device: str) -> None:
        self._entry = entry
        self._device = device
        self._lock = threading.Lock()
        self._ready = False
        self._closed = False

    def answer(self, batch: RewardBatch) -> _Answers:
        """The reward's checked answer to every image of the batch."""
        scores: list[float | None] = [None] * len(batch)
        details: list[Mapping[str, Any] | None] = [None] * len(batch)
        with self._lock:
            self._set_up()
            for indices in _split(batch, self._entry.spec):
                chunk = batch.select(indices)
                if self._entry.spec.image_format == "pil":
                    chunk = replace(chunk, images=_to_pil(chunk.images))
                answers = _checked(self._entry, chunk, self._call(partial(self._entry.reward, chunk), "raised"))
                for i, score, told in zip(indices, answers.scores, answers.details, strict=True):
                    scores[i], details[i] = score, told
        return _Answers(scores, details)

    def close(self) -> Tdmr1Error | None:
        """Close the reward once, if it can be closed; what went wrong is returned."""
        if self._closed:
            return None
        self._closed = True
        try:
            self._call(getattr(self._entry.reward, "close", _nothing), "could not be closed:")
        except Tdmr1Error as error:
            return error
        return None

    def _set_up(self) -> None:
        if not self._ready:
            set_up = getattr(self._entry.reward, "setup", _nothing)
            self._call(partial(set_up, self._device), "could not be set up:")
            self._ready = True

    def _call(self, function: Callable[[], Any], failed: str) -> Any:
        try:
            return function()
        except Tdmr1Error as error:
            raise Tdmr1Error(f"{self._entry} {failed} {error.message}", error.hint) from error
        except Exception as error:
            raise Tdmr1Error(f"{self._entry} {failed} {type(error).__name__}: {error}") from error


def _nothing(*_: object) -> None:
    """Stands for a method that the reward does not have."""


def _gather(parts: Sequence[Future[_Answers]], finish: Callable[[list[_Answers]], ScoredBatch]) -> Future[ScoredBatch]:
    """A future of `finish` of all parts' results. No thread waits for it, so the pool cannot lock up."""
    whole: Future[ScoredBatch] = Future()
    whole.set_running_or_notify_cancel()
    remaining = len(parts)
    lock = threading.Lock()

    def part_done(_: Future[_Answers]) -> None:
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


def _split(batch: RewardBatch, spec: RewardSpec) -> list[list[int]]:
    """The indices of each call: at most `batch_size` images, or as many whole groups as fit, but at least one."""
    if not spec.groupwise:
        return [
            list(range(start, min(start + spec.batch_size, len(batch))))
            for start in range(0, len(batch), spec.batch_size)
        ]
    groups: dict[int, list[int]] = {}
    for index, group in enumerate(batch.group_ids):
        groups.setdefault(group, []).append(index)
    calls: list[list[int]] = []
    for members in groups.values():
        if calls and len(calls[-1]) + len(members) <= spec.batch_size:
            calls[-1] += members
        else:
            calls.append(list(members))
    return calls


def _check_images(images: Any) -> None:
    if not isinstance(images, np.ndarray):
        raise Tdmr1Error(f"images to score are a {type(images).__name__}, but must be one uint8 array (N, H, W, 3)")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise Tdmr1Error(f"images to score are {images.dtype} {images.shape}, but must be uint8 (N, H, W, 3)")


def _to_pil(images: np.ndarray) -> list[Any]:
    from PIL import Image

    return [Image.fromarray(image) for image in images]


def _checked(entry: ActiveReward, batch: RewardBatch, result: Any) -> _Answers:
    """The answer if it is one: a score and perhaps a mapping for each image. Raises Tdmr1Error otherwise."""
    if not isinstance(result, RewardResult):
        raise Tdmr1Error(
            f"{entry} answered a {type(result).__name__} instead of a RewardResult",
            "return RewardResult(scores=[...])",
        )
    scores = _sized(entry, "scores", result.scores, len(batch))
    details = [None] * len(batch) if result.details is None else _sized(entry, "details", result.details, len(batch))
    for image_id, told in zip(batch.image_ids, details, strict=True):
        if told is not None and not isinstance(told, Mapping):
            raise Tdmr1Error(f"{entry} gave a {type(told).__name__} as details of image {image_id}, not a mapping")
    numbers = [_number(entry, score, i) for score, i in zip(scores, batch.image_ids, strict=True)]
    return _Answers(numbers, details)


def _sized(entry: ActiveReward, field: str, values: Any, count: int) -> list[Any]:
    try:
        listed = list(values)
    except TypeError:
        raise Tdmr1Error(f"{entry} answered {field} of type {type(values).__name__}, not a list") from None
    if len(listed) != count:
        raise Tdmr1Error(
            f"{entry} answered {len(listed)} {field} for {count} images",
            "answer one for each image, in order; None is a score it cannot give",
        )
    return listed


def _number(entry: ActiveReward, score: Any, image_id: int) -> float | None:
    if score is None:
        return None
    if not isinstance(score, Real | np.bool_) or not math.isfinite(score):
        raise Tdmr1Error(
            f"{entry} answered {reprlib.repr(score)}, a {type(score).__name__}, for image {image_id}",
            "a score is a finite number, or None for an image that the reward cannot judge",
        )
    return float(score)
