"""Scores batches of images with several rewards in parallel and combines their scores."""

from __future__ import annotations

import asyncio
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import numpy as np

from tdmr1_rewards.api import RewardBatch, RewardSpec
from tdmr1_rewards.calling.calling_thread import CallingThread
from tdmr1_rewards.calling.host import Host
from tdmr1_rewards.calling.interrupts import wait_for
from tdmr1_rewards.calling.limited_steps import LimitedSteps
from tdmr1_rewards.calling.process import ProcessHost
from tdmr1_rewards.calling.reference import Reference
from tdmr1_rewards.calling.state import State
from tdmr1_rewards.calling.thread import ThreadHost
from tdmr1_rewards.errors import RewardWarning, Tdmr1Error
from tdmr1_rewards.scoring.active_reward import ActiveReward
from tdmr1_rewards.scoring.combine import applicability, normalised_sum, weighted_sum
from tdmr1_rewards.scoring.failures import Failure, RewardFailed
from tdmr1_rewards.scoring.supervisor import Answers, Job, RewardSupervisor

Combine = Literal["weighted_sum", "normalised"]


@dataclass(frozen=True)
class ScoredBatch:
    """The scores of N images. Each list has length N, except `failures`.

    `total` is the combined score; it is None if no reward applies, or if the score of one that applies is None.
    `per_reward` has the scores of each reward, and `applies` whether it applies to each image. `details` has one
    mapping per image, from reward names to their details. `failures` are the failed calls that were skipped.
    """

    total: list[float | None]
    per_reward: dict[str, list[float | None]]
    details: list[dict[str, Any]]
    applies: dict[str, list[bool]]
    failures: list[Failure]

    @property
    def failed(self) -> dict[str, int]:
        """The number of images in failed calls, for each reward."""
        return {name: sum(len(f.batch) for f in self.failures if f.reward == name) for name in self.per_reward}

    @property
    def unjudged(self) -> dict[str, int]:
        """The number of images for which a reward returned None, for each reward."""
        return {
            name: sum(on and score is None for on, score in zip(self.applies[name], scores, strict=True))
            - self.failed[name]
            for name, scores in self.per_reward.items()
        }


class RewardRunner:
    """Scores batches with several rewards, with at most `workers` calls at a time.

    Calls to one reward never overlap; different rewards run in parallel. `device` is the argument of each reward's
    `setup`. With "normalised", a batch must contain whole groups. If a reward raises, returns an invalid result or
    exceeds its time limit, scoring the batch raises RewardFailed, or the images of the call have no score if
    `on_failure` is "skip": a failure never becomes a number. The images of a call that stops a run are saved in the run
    folder. Raises Tdmr1Error for invalid arguments, and if a reward in another process cannot be built.
    """

    def __init__(self, entries: Sequence[ActiveReward], combine: Combine, workers: int, device: str = "cpu") -> None:
        names = [entry.name for entry in entries]
        if not names:
            raise Tdmr1Error("no reward is given", "name at least one", code="setting-invalid")
        if len(set(names)) < len(names):
            raise Tdmr1Error(
                f"two rewards have the same name: {', '.join(names)}",
                "give each reward its own name",
                code="setting-conflict",
                values={"rewards": names},
            )
        if combine not in get_args(Combine):
            raise Tdmr1Error(
                f"combine is {combine!r}, but must be {' or '.join(map(repr, get_args(Combine)))}",
                code="setting-invalid",
                values={"setting": "combine", "found": combine, "expected": list(get_args(Combine))},
            )
        self._weights = {entry.name: entry.weight for entry in entries}
        self._combine = combine
        self._loop = asyncio.new_event_loop()
        self._closing = asyncio.Event()
        gate = asyncio.Semaphore(workers)
        self._supervisors: dict[str, RewardSupervisor] = {}
        for entry in entries:
            host, thread = _host(entry), CallingThread(f"reward-{entry.name}")
            self._supervisors[entry.name] = RewardSupervisor(
                entry, host, LimitedSteps(host, thread), entry.device or device, gate, self._closing
            )
        self._lock = threading.Lock()
        self._closed = False
        self._failures: list[Tdmr1Error] = []
        self._thread = threading.Thread(target=self._run_loop, name="rewards", daemon=True)
        self._thread.start()
        try:
            self._results({name: each.start for name, each in self._supervisors.items()})
        except BaseException:
            self.close()
            raise

    def set_up(self) -> None:
        """Set up every reward now instead of before its first batch. Raises RewardFailed if that fails."""
        self._results({name: each.set_up for name, each in self._supervisors.items()})

    def set_up_served(self) -> dict[str, RewardSpec]:
        """Set up the rewards on servers. Returns their specs as the servers have them. Raises RewardFailed."""
        served = {name: each for name, each in self._supervisors.items() if hasattr(each.entry.reward, "served_spec")}
        self._results({name: each.set_up for name, each in served.items()})
        return {name: each.entry.spec for name, each in served.items()}

    def specs(self) -> dict[str, RewardSpec]:
        """The spec of each reward. After its set-up, a reward on a server has the limits of the server."""
        return {name: each.entry.spec for name, each in self._supervisors.items()}

    def states(self) -> dict[str, State]:
        """The state of each reward that has one and is set up.

        Raises RewardFailed if a reward cannot return its state, or if the state is not plain JSON data.
        """
        found = self._results({name: each.state for name, each in self._supervisors.items()})
        return {name: state for name, state in found.items() if state is not None}

    def load_states(self, states: Mapping[str, State]) -> None:
        """Restore states that `states` returned. Raises Tdmr1Error for an unknown reward, and if restoring fails."""
        for name in states:
            if name not in self._supervisors:
                raise Tdmr1Error(
                    f"there is a state of reward {name!r}, but no reward has this name",
                    "use the names that the rewards had when the state was saved",
                    code="reward-state",
                    values={"reward": name, "rewards": list(self._supervisors)},
                )
        self._results({name: partial(self._supervisors[name].load_state, state) for name, state in states.items()})

    @contextmanager
    def preserving_states(self) -> Iterator[None]:
        """Restore the states of all rewards at the end of the context."""
        self.set_up()
        states = self.states()
        yield
        self.load_states(states)

    def score(self, batch: RewardBatch) -> ScoredBatch:
        """Score a batch whose images are one uint8 array (N, H, W, 3).

        Raises RewardFailed if a reward fails; with skipped failures only as `check_any_scored` does.
        """
        scored = wait_for(self.submit(batch))
        check_any_scored([scored])
        return scored

    def submit(self, batch: RewardBatch) -> Future[ScoredBatch]:
        """Like `score`, but does not wait: the future's `result()` raises the errors of rewards.

        Call `check_any_scored` when all batches of an iteration are done. Raises Tdmr1Error for images of another type
        or shape, invalid metadata, and after `close`.
        """
        _check_images(batch.images)
        applies = applicability(batch.metadata, self._weights)
        jobs = {name: partial(each.answer, batch, applies[name]) for name, each in self._supervisors.items()}
        return _gather(list(self._queue(jobs).values()), partial(self._scored, batch, applies))

    def close(self) -> None:
        """Cancel the queued calls, wait up to `GRACE` seconds for running calls, and close every reward.

        Raises the error of the first reward that cannot be closed.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join()
        if self._failures:
            raise self._failures[0]

    def __enter__(self) -> RewardRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run_loop(self) -> None:
        """Run the event loop in its thread until all rewards are closed."""
        try:
            self._loop.run_until_complete(self._supervise())
        finally:
            self._loop.close()

    async def _supervise(self) -> None:
        ends = await asyncio.gather(*(each.run() for each in self._supervisors.values()))
        self._failures = [failure for failure in ends if failure is not None]

    def _results(self, jobs: Mapping[str, Job]) -> dict[str, Any]:
        """Run jobs of rewards and wait for their results. Raises the error of the first one that fails."""
        return {name: wait_for(future) for name, future in self._queue(jobs).items()}

    def _queue(self, jobs: Mapping[str, Job]) -> dict[str, Future[Any]]:
        """Queue a job of each reward and return the futures of the results. Raises Tdmr1Error after `close`."""
        futures: dict[str, Future[Any]] = {name: Future() for name in jobs}
        with self._lock:
            if self._closed:
                raise Tdmr1Error("the rewards are closed", "build a new RewardRunner", code="reward-failed")
            self._loop.call_soon_threadsafe(self._put, jobs, futures)
        return futures

    def _put(self, jobs: Mapping[str, Job], futures: Mapping[str, Future[Any]]) -> None:
        for name, job in jobs.items():
            self._supervisors[name].put(job, futures[name])

    def _scored(self, batch: RewardBatch, applies: dict[str, list[bool]], answers: Sequence[Answers]) -> ScoredBatch:
        by_name = dict(zip(self._weights, answers, strict=True))
        per_reward = {name: answer.scores for name, answer in by_name.items()}
        if self._combine == "normalised":
            total = normalised_sum(
                per_reward, self._weights, batch.group_ids, applies=applies, image_ids=batch.image_ids
            )
        else:
            total = weighted_sum(per_reward, self._weights, applies, batch.image_ids)
        details = [
            {name: dict(answer.details[i]) for name, answer in by_name.items() if answer.details[i]}
            for i in range(len(batch))
        ]
        return ScoredBatch(total, per_reward, details, applies, [f for answer in answers for f in answer.failures])


def _host(entry: ActiveReward) -> Host:
    if isinstance(entry.reward, Reference):
        return ProcessHost(entry.reward, str(entry), entry.spec.image_format, entry.python)

    def warn_of_change(what: str) -> None:
        message = f"{entry} changes {what}, which is restored after every call; set `isolated: true` for it"
        warnings.warn(RewardWarning(message, code="reward-process-state"), stacklevel=2)

    return ThreadHost(entry.reward, entry.spec.image_format, warn_of_change, str(entry))


def check_any_scored(parts: Sequence[ScoredBatch]) -> None:
    """Raise RewardFailed if failures leave no image of all batches with a total, or with a score of one reward."""
    totals = [score for part in parts for score in part.total]
    for failure in (failure for part in reversed(parts) for failure in reversed(part.failures)):
        scores = [score for part in parts for score in part.per_reward[failure.reward]]
        if all(score is None for score in scores) or all(total is None for total in totals):
            error = failure.saved()
            message = f"{error.message}; no image of the iteration has a score"
            raise RewardFailed(message, error.hint, code=error.code, values=error.values) from error


def _gather(parts: Sequence[Future[Answers]], finish: Callable[[list[Answers]], ScoredBatch]) -> Future[ScoredBatch]:
    """The future of `finish(results of all parts)`, or of the first error. No thread waits for it."""
    whole: Future[ScoredBatch] = Future()
    whole.set_running_or_notify_cancel()
    ends: list[Any] = [None] * len(parts)
    remaining = len(parts)
    lock = threading.Lock()

    def part_done(index: int, part: Future[Answers]) -> None:  # has no reference to the parts, which refer to it
        nonlocal remaining
        with lock:
            ends[index] = part.exception() or part.result()
            remaining -= 1
            if remaining:
                return
        errors = [end for end in ends if isinstance(end, BaseException)]
        if errors:
            whole.set_exception(errors[0])
            return
        try:
            whole.set_result(finish(ends))
        except BaseException as error:
            whole.set_exception(error)

    for index, part in enumerate(parts):
        part.add_done_callback(partial(part_done, index))
    return whole


def _check_images(images: Any) -> None:
    found = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else f"a {type(images).__name__}"
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise Tdmr1Error(
            f"images to score are {found}, but must be one uint8 array (N, H, W, 3)",
            code="reward-images",
            values={"found": found},
        )
