"""Runs rewards on batches of images: beside the caller, in the sizes they ask for, and trusting no answer unchecked."""

from __future__ import annotations

import queue
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from tdmr1_rewards.answers import CallFailed
from tdmr1_rewards.api import Reward, RewardBatch, RewardResult, RewardSpec
from tdmr1_rewards.combine import applicability, normalised_sum, weighted_sum
from tdmr1_rewards.errors import Tdmr1Error
from tdmr1_rewards.failures import Failure, RewardFailed, RewardWarning
from tdmr1_rewards.hosts import Host
from tdmr1_rewards.hosts.process import ProcessHost
from tdmr1_rewards.hosts.thread import ThreadHost
from tdmr1_rewards.reference import Reference
from tdmr1_rewards.registry import Provenance
from tdmr1_rewards.state import State

Combine = Literal["weighted_sum", "normalised"]
OnFailure = Literal["stop", "skip"]

GRACE = 5.0
"""Seconds that `close` waits for calls that have begun before it leaves them behind."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 8.0
"""Seconds before the first retry of a call, doubled for each further one, up to the longest."""


@dataclass(frozen=True)
class ActiveReward:
    """A reward that is in use: `name` in reports, `weight` in the total, and where it comes from.

    `reward` is the object itself, or a Reference to build it by in a process of its own: that of the interpreter
    `python`, or of this one. The rest overrides the spec's `batch_size` and `timeout` ("none": no limit) and the
    runner's `device`, and says how often a failed call is tried again, and whether a failure stops the run or its
    images are left out.
    """

    name: str
    weight: float
    spec: RewardSpec
    reward: Reward | Reference
    provenance: Provenance
    batch_size: int | None = None
    timeout: float | Literal["none"] | None = None
    retries: int = 0
    on_failure: OnFailure = "stop"
    device: str | None = None
    python: Path | None = None

    def __str__(self) -> str:
        return f"reward {self.name!r} (from {self.provenance})"

    @property
    def seconds(self) -> float | None:
        """What a call may take, None without a limit."""
        if self.timeout is None:
            return self.spec.timeout
        return None if self.timeout == "none" else self.timeout


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


@dataclass(frozen=True)
class _Answers:
    """One reward's checked answer to N images, and the calls that failed."""

    scores: list[float | None]
    details: list[Mapping[str, Any]]
    failures: list[Failure]


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
        self._slots: list[_Slot] = []
        gate = threading.Semaphore(workers)
        try:
            for entry in entries:
                self._slots.append(_Slot(entry, device, gate, self._closing))
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

    def _scored(self, batch: RewardBatch, applies: dict[str, list[bool]], answers: Sequence[_Answers]) -> ScoredBatch:
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


class _Slot:
    """One reward and the thread that asks it, one call after another."""

    def __init__(self, entry: ActiveReward, device: str, gate: threading.Semaphore, closing: threading.Event) -> None:
        self._entry = entry
        self._device = entry.device or device
        self._gate = gate
        self._closing = closing
        self._ready = False
        self._host = _host(entry)
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        # A daemon: a call that hangs must not keep the program from ending.
        self._thread = threading.Thread(target=self._work, name=f"reward-{entry.name}", daemon=True)
        self._thread.start()

    def submit(self, batch: RewardBatch, applies: Sequence[bool]) -> Future[_Answers]:
        """The future of the reward's answers to a batch: it is asked about the images that it applies to."""
        return self.do(lambda: self._answer(batch, [index for index, on in enumerate(applies) if on]))

    def do(self, function: Callable[[], Any]) -> Future[Any]:
        """The future of a function that is called after all that was asked for before."""
        future: Future[Any] = Future()
        self._jobs.put((function, future))
        return future

    def set_up(self) -> None:
        """Set the reward up, once."""
        if not self._ready:
            try:
                self._host.setup(self._device)
            except CallFailed as failure:
                raise self._told(failure) from failure.__cause__
            self._ready = True

    def state(self) -> State | None:
        """What the reward remembers; None for one that has no state, or was not set up."""
        try:
            return self._host.state() if self._ready else None
        except CallFailed as failure:
            raise self._told(failure) from failure.__cause__

    def load_state(self, state: State) -> None:
        """Let the reward, set up, remember what it told."""
        self.set_up()
        try:
            self._host.load_state(state)
        except CallFailed as failure:
            raise self._told(failure) from failure.__cause__

    def stop(self) -> None:
        """Drop what has not begun; the thread ends after what has."""
        while not self._jobs.empty():
            job = self._jobs.get()
            if job is not None:
                job[1].cancel()
        self._jobs.put(None)

    def join(self, deadline: float) -> None:
        """Wait for the call that is going on, until the deadline (monotonic seconds); then leave it behind."""
        self._thread.join(max(deadline - time.monotonic(), 0.0))
        if self._thread.is_alive():
            self.abort()
            self._thread.join(1.0)

    def abort(self) -> None:
        """Leave the call behind that is going on."""
        self._host.abort()

    def release(self) -> Tdmr1Error | None:
        """Close the reward; what went wrong is returned."""
        try:
            self._host.close()
        except CallFailed as failure:
            return self._told(failure)
        return None

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            function, future = job
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

    def _answer(self, batch: RewardBatch, asked: Sequence[int]) -> _Answers:
        """The checked answers: None where the reward was not asked, cannot judge, or failed and is to be skipped."""
        answers = _Answers([None] * len(batch), [{} for _ in range(len(batch))], [])
        if asked:
            self.set_up()
        for places in _split(batch.select(asked), self._entry):
            indices = [asked[place] for place in places]
            try:
                result = self._result(batch, indices)
            except RewardFailed as error:
                failure = Failure(self._entry.name, batch.select(indices), error)
                if self._entry.on_failure == "stop":
                    raise failure.saved() from error.__cause__
                answers.failures.append(failure)
                _warn(failure)
                result = RewardResult([None] * len(indices), [{"failed": error.message}] * len(indices))
            for index, score, told in zip(indices, result.scores, result.details or (), strict=True):
                answers.scores[index], answers.details[index] = score, told
        return answers

    def _result(self, batch: RewardBatch, indices: Sequence[int]) -> RewardResult:
        """One call, tried as often as the reward may be. Raises RewardFailed for the last failure."""
        attempt = 0
        while True:
            if self._closing.is_set():
                raise CancelledError
            try:
                with self._gate:
                    return self._host.call(batch.select(indices), self._entry.seconds)
            except CallFailed as failure:
                if attempt == self._entry.retries or self._closing.is_set():
                    raise self._told(failure, f" (tried {attempt + 1} times)" if attempt else "") from failure.__cause__
            self._closing.wait(min(FIRST_PAUSE * 2**attempt, LONGEST_PAUSE))
            attempt += 1

    def _told(self, failure: CallFailed, tries: str = "") -> RewardFailed:
        return RewardFailed(f"{self._entry} {failure.said}{tries}", failure.hint)


def _host(entry: ActiveReward) -> Host:
    if isinstance(entry.reward, Reference):
        return ProcessHost(entry.reward, str(entry), entry.spec.image_format, entry.python)
    return ThreadHost(entry.reward, entry.spec.image_format)


def _warn(failure: Failure) -> None:
    count, iteration = len(failure.batch), failure.batch.context.iteration + 1
    images = "1 image goes" if count == 1 else f"{count} images go"
    message = f"{failure.error.message}; in iteration {iteration} {images} without a reward"
    warnings.warn(message, RewardWarning, stacklevel=2)


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


def _split(batch: RewardBatch, entry: ActiveReward) -> list[list[int]]:
    """The indices of each call: at most `batch_size` images, or as many whole groups as fit, but at least one."""
    most = entry.batch_size or entry.spec.batch_size
    if not entry.spec.groupwise:
        return [list(range(start, min(start + most, len(batch)))) for start in range(0, len(batch), most)]
    groups: dict[int, list[int]] = {}
    for index, group in enumerate(batch.group_ids):
        groups.setdefault(group, []).append(index)
    calls: list[list[int]] = []
    for members in groups.values():
        if calls and len(calls[-1]) + len(members) <= most:
            calls[-1] += members
        else:
            calls.append(list(members))
    return calls


def _check_images(images: Any) -> None:
    if not isinstance(images, np.ndarray):
        raise Tdmr1Error(f"images to score are a {type(images).__name__}, but must be one uint8 array (N, H, W, 3)")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise Tdmr1Error(f"images to score are {images.dtype} {images.shape}, but must be uint8 (N, H, W, 3)")
