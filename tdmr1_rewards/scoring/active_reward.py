"""One reward in use and the thread that asks it: in the sizes it wants, again if it may fail, no answer unchecked."""

from __future__ import annotations

import queue
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tdmr1_rewards.api import Reward, RewardBatch, RewardResult, RewardSpec
from tdmr1_rewards.calling.host import Host
from tdmr1_rewards.calling.process import ProcessHost
from tdmr1_rewards.calling.reference import Reference
from tdmr1_rewards.calling.result_checks import CallFailed
from tdmr1_rewards.calling.state import State
from tdmr1_rewards.calling.thread import ThreadHost
from tdmr1_rewards.errors import Tdmr1Error
from tdmr1_rewards.registry import Provenance
from tdmr1_rewards.scoring.failures import Failure, RewardFailed, RewardWarning

OnFailure = Literal["stop", "skip"]

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
class Answers:
    """One reward's checked answer to N images, and the calls that failed."""

    scores: list[float | None]
    details: list[Mapping[str, Any]]
    failures: list[Failure]


class RewardWorker:
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

    def submit(self, batch: RewardBatch, applies: Sequence[bool]) -> Future[Answers]:
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

    def _answer(self, batch: RewardBatch, asked: Sequence[int]) -> Answers:
        """The checked answers: None where the reward was not asked, cannot judge, or failed and is to be skipped."""
        answers = Answers([None] * len(batch), [{} for _ in range(len(batch))], [])
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
        return RewardFailed(f"{self._entry} {failure.reason}{tries}", failure.hint)


def _host(entry: ActiveReward) -> Host:
    if isinstance(entry.reward, Reference):
        return ProcessHost(entry.reward, str(entry), entry.spec.image_format, entry.python)
    return ThreadHost(entry.reward, entry.spec.image_format)


def _warn(failure: Failure) -> None:
    count, iteration = len(failure.batch), failure.batch.context.iteration + 1
    images = "1 image goes" if count == 1 else f"{count} images go"
    message = f"{failure.error.message}; in iteration {iteration} {images} without a reward"
    warnings.warn(message, RewardWarning, stacklevel=2)


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
