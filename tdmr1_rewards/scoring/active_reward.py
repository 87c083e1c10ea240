"""Runs one reward in a thread: splits batches into calls, repeats failed calls and checks results."""

from __future__ import annotations

import queue
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tdmr1_rewards.api import Reward, RewardBatch, RewardResult, RewardSpec
from tdmr1_rewards.calling.host import Host
from tdmr1_rewards.calling.reference import Reference
from tdmr1_rewards.calling.result_checks import CallFailed
from tdmr1_rewards.calling.state import State
from tdmr1_rewards.errors import Tdmr1Error
from tdmr1_rewards.registry import Provenance
from tdmr1_rewards.scoring.failures import Failure, RewardFailed, RewardWarning

OnFailure = Literal["stop", "skip"]

CALL_HINT = "correct the reward, or set `on_failure: skip` for runs to continue without these scores"
"""The hint for a failed call that has no hint of its own."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 8.0
"""Seconds before the first retry of a call; doubled for each further retry, up to the longest pause."""


@dataclass(frozen=True)
class ActiveReward:
    """A reward with its settings. `name` is its name in reports, `weight` its factor in the total score.

    `reward` is a Reward, or a Reference: then the reward is built in another process, with the interpreter `python` or
    this one. `batch_size` and `timeout` ("none" is no limit) override the spec, `device` overrides that of the runner.
    A failed call is repeated up to `retries` times. Then `on_failure` decides: the run stops, or the images of the call
    have no score.
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
        """The time limit of a call in seconds; None is no limit."""
        if self.timeout is None:
            return self.spec.timeout
        return None if self.timeout == "none" else self.timeout


@dataclass(frozen=True)
class Answers:
    """The checked scores and details of one reward for N images, and the calls that failed."""

    scores: list[float | None]
    details: list[Mapping[str, Any]]
    failures: list[Failure]


@dataclass(eq=False)
class RewardWorker:
    """One reward and the thread that calls it through its host, one call at a time."""

    entry: ActiveReward
    host: Host
    device: str
    gate: threading.Semaphore
    """At most as many calls as it admits run at a time."""
    closing: threading.Event
    """Set when no call may start any more."""
    thread: threading.Thread = field(init=False)
    """Runs `work`."""
    _ready: bool = field(default=False, init=False)
    _jobs: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = field(
        default_factory=queue.SimpleQueue, init=False
    )

    def submit(self, batch: RewardBatch, applies: Sequence[bool]) -> Future[Answers]:
        """The future of the reward's answers to a batch. Only the images with a true `applies` entry are scored."""
        return self.do(lambda: self._answer(batch, [index for index, on in enumerate(applies) if on]))

    def do(self, function: Callable[[], Any]) -> Future[Any]:
        """Queue a function for the thread and return the future of its result."""
        future: Future[Any] = Future()
        self._jobs.put((function, future))
        return future

    def set_up(self) -> None:
        """Set up the reward, unless that is already done."""
        if not self._ready:
            try:
                self.host.setup(self.device)
            except CallFailed as failure:
                raise self._failed(failure) from failure.__cause__
            self._ready = True

    def state(self) -> State | None:
        """The state of the reward; None if it has none or is not set up."""
        try:
            return self.host.state() if self._ready else None
        except CallFailed as failure:
            raise self._failed(failure) from failure.__cause__

    def load_state(self, state: State) -> None:
        """Set up the reward and restore a state that `state` returned."""
        self.set_up()
        try:
            self.host.load_state(state)
        except CallFailed as failure:
            raise self._failed(failure) from failure.__cause__

    def stop(self) -> None:
        """Cancel the queued calls. The thread ends after the current call."""
        while not self._jobs.empty():
            job = self._jobs.get()
            if job is not None:
                job[1].cancel()
        self._jobs.put(None)

    def join(self, deadline: float) -> None:
        """Wait for the current call until the deadline (monotonic seconds), then abort it."""
        self.thread.join(max(deadline - time.monotonic(), 0.0))
        if self.thread.is_alive():
            self.abort()
            self.thread.join(1.0)

    def abort(self) -> None:
        """End the current call, or stop waiting for it."""
        self.host.abort()

    def release(self) -> Tdmr1Error | None:
        """Close the reward; an error is returned, not raised."""
        try:
            self.host.close()
        except CallFailed as failure:
            return self._failed(failure)
        return None

    def work(self) -> None:
        """Run one queued function after another until `stop`."""
        while (job := self._jobs.get()) is not None:
            function, future = job
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

    def _answer(self, batch: RewardBatch, applicable: Sequence[int]) -> Answers:
        """Score the images at the `applicable` indices.

        A score is None if the reward does not apply, returned None, or failed and failures are skipped.
        """
        answers = Answers([None] * len(batch), [{} for _ in range(len(batch))], [])
        if applicable:
            self.set_up()
        for positions in _split(batch.select(applicable), self.entry):
            indices = [applicable[position] for position in positions]
            try:
                result = self._result(batch, indices)
            except RewardFailed as error:
                failure = Failure(self.entry.name, batch.select(indices), error)
                if self.entry.on_failure == "stop":
                    raise failure.saved() from error.__cause__
                answers.failures.append(failure)
                _warn(failure)
                result = RewardResult([None] * len(indices), [{"failed": error.message}] * len(indices))
            for index, score, details in zip(indices, result.scores, result.details or (), strict=True):
                answers.scores[index], answers.details[index] = score, details
        return answers

    def _result(self, batch: RewardBatch, indices: Sequence[int]) -> RewardResult:
        """The result of one call, with retries. Raises RewardFailed for the last failure."""
        attempt = 0
        while True:
            if self.closing.is_set():
                raise CancelledError
            try:
                with self.gate:
                    return self.host.call(batch.select(indices), self.entry.seconds)
            except CallFailed as failure:
                if attempt == self.entry.retries or self.closing.is_set():
                    failure.hint = failure.hint or CALL_HINT
                    raise self._failed(failure, tries=attempt + 1) from failure.__cause__
            self.closing.wait(min(FIRST_PAUSE * 2**attempt, LONGEST_PAUSE))
            attempt += 1

    def _failed(self, failure: CallFailed, tries: int = 1) -> RewardFailed:
        """The error for a failed call, with the name of the reward."""
        message = f"{self.entry} {failure.reason}" + (f" (tried {tries} times)" if tries > 1 else "")
        values = {"reward": self.entry.name, "provenance": str(self.entry.provenance), "tries": tries}
        return RewardFailed(message, failure.hint, code=failure.code, values={**values, **failure.values})


def _warn(failure: Failure) -> None:
    count, iteration = len(failure.batch), failure.batch.context.iteration + 1
    images = "1 image has" if count == 1 else f"{count} images have"
    values = {**failure.error.values, "reward": failure.reward, "images": count, "iteration": iteration}
    message = f"{failure.error.message}; {images} no score in iteration {iteration}"
    warnings.warn(RewardWarning(message, values=values), stacklevel=2)


def _split(batch: RewardBatch, entry: ActiveReward) -> list[list[int]]:
    """The indices of the images of each call: at most `batch_size` images.

    For a groupwise reward: as many whole groups as fit, and at least one.
    """
    limit = entry.batch_size or entry.spec.batch_size
    if not entry.spec.groupwise:
        return [list(range(start, min(start + limit, len(batch)))) for start in range(0, len(batch), limit)]
    groups: dict[int, list[int]] = {}
    for index, group in enumerate(batch.group_ids):
        groups.setdefault(group, []).append(index)
    calls: list[list[int]] = []
    for members in groups.values():
        if calls and len(calls[-1]) + len(members) <= limit:
            calls[-1] += members
        else:
            calls.append(list(members))
    return calls
