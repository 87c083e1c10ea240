"""Supervises the calls of one reward: order, batches, time limits and retries.

A RewardRunner with R rewards has these threads. All are daemons: a call that never returns must not prevent the
program from exiting.

- One thread "rewards" with an asyncio event loop. In it, one RewardSupervisor per reward takes its jobs in order,
  splits batches, waits for the gate, pauses between retries and collects the answers; its LimitedSteps waits for each
  step of the host with a time limit. All waiting and all decisions are here; the code of rewards never runs here.
- One CallingThread "reward-NAME" per reward, in which all steps of its host run, one at a time: a ThreadHost runs the
  reward there, a ProcessHost reads and writes the pipes of its process.
- One thread "reward-loop" for each local reward with async methods, and one that reads stderr for each process.

A step that exceeds its limit: a process is killed, which ends the step. A thread runs on, and the next step waits.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from tdmr1_rewards.api import RewardBatch, RewardResult
from tdmr1_rewards.calling.host import Host
from tdmr1_rewards.calling.limited_steps import LimitedSteps
from tdmr1_rewards.calling.process import STARTING_LIMIT
from tdmr1_rewards.calling.result_checks import CallFailed
from tdmr1_rewards.calling.state import State
from tdmr1_rewards.calling.thread import ThreadHost
from tdmr1_rewards.calling.user_code import place_hint
from tdmr1_rewards.errors import RewardNote, RewardWarning, Tdmr1Error, join_hints
from tdmr1_rewards.scoring.active_reward import ActiveReward, OnFailure
from tdmr1_rewards.scoring.failures import Failure, RewardFailed

Job = Callable[[], Coroutine[Any, Any, Any]]
"""A method of a RewardSupervisor, without its arguments."""
CALL_HINTS: Mapping[OnFailure, str] = {
    "stop": "correct the reward, or set `on_failure: skip` for runs to continue without these scores",
    "skip": "correct the reward",
}
"""The hint for a call that raised an exception, or has no hint of its own, by what a failure of a run does."""
GRACE = 5.0
"""Seconds that closing waits for the current call before it is aborted."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 8.0
"""Seconds before the first retry of a call; doubled for each further retry, up to the longest pause."""
STATE_LIMIT, CLOSING_LIMIT = 60.0, 30.0
"""Seconds that a reward may take to return or restore its state, and to close."""


@dataclass(frozen=True)
class Answers:
    """The checked scores and details of one reward for N images, and the calls that failed."""

    scores: list[float | None]
    details: list[Mapping[str, Any]]
    failures: list[Failure]


@dataclass(eq=False)
class RewardSupervisor:
    """Runs the jobs of one reward, one after another. All methods run in the supervising event loop."""

    entry: ActiveReward
    host: Host
    steps: LimitedSteps
    device: str
    gate: asyncio.Semaphore
    """At most as many calls as it admits run at a time."""
    closing: asyncio.Event
    """Set when no call may start any more."""
    _jobs: asyncio.Queue[tuple[Job, Future[Any]] | None] = field(default_factory=asyncio.Queue, init=False)
    _starting: bool = field(default=False, init=False)
    """Whether the process of the reward is starting."""
    _ready: bool = field(default=False, init=False)
    """Whether the reward is set up."""
    _state: State | None = field(default=None, init=False)
    """The state that was returned or restored last; a restarted process gets it."""

    def put(self, job: Job, future: Future[Any]) -> None:
        """Queue a job. Its future gets the result."""
        self._jobs.put_nowait((job, future))

    async def run(self) -> Tdmr1Error | None:
        """Run the jobs until `closing`, then close the reward. An error of closing is returned, not raised.

        Queued jobs are cancelled, and the current one is aborted if it does not end within `GRACE`.
        """
        working = asyncio.create_task(self._work())
        await self.closing.wait()
        while not self._jobs.empty():
            if (job := self._jobs.get_nowait()) is not None:
                job[1].set_exception(CancelledError())
        self._jobs.put_nowait(None)
        await asyncio.wait([working], timeout=0.0 if self._starting else GRACE)
        if not working.done():
            self.steps.abort()
            await working
        try:
            await self.steps.close(CLOSING_LIMIT)
        except CallFailed as failure:
            return self._failed(failure)
        return None

    async def start(self) -> None:
        """Start the process of the reward, if it needs one. Raises Tdmr1Error if it cannot be started or built."""
        if self.host.gone:
            self._starting = True
            try:
                with self._named_failures():
                    await self.steps.run(self.host.start, STARTING_LIMIT)
            finally:
                self._starting = False

    async def set_up(self) -> None:
        """Set up the reward, unless that is already done."""
        if not self._ready:
            with self._named_failures():
                await self._restart()
                note = await self.steps.run(partial(self.host.setup, self.device), None)
            if note is not None:
                warnings.warn(RewardNote(f"{self.entry}: {note}", values={"reward": self.entry.name}), stacklevel=2)
            self._adopt_served_spec()
            self._ready = True

    async def state(self) -> State | None:
        """The state of the reward; None if it has none or is not set up."""
        if self._ready and self.host.has_state and not self.host.gone:
            with self._named_failures():
                self._state = await self.steps.run(self.host.state, STATE_LIMIT)
        return self._state

    async def load_state(self, state: State) -> None:
        """Set up the reward and restore a state that `state` returned."""
        await self.set_up()
        with self._named_failures():
            await self._restart()
            await self.steps.run(partial(self.host.load_state, state), STATE_LIMIT)
        self._state = state

    async def answer(self, batch: RewardBatch, applies: Sequence[bool]) -> Answers:
        """The answers for a batch. Only the images with a true `applies` entry are scored.

        A score is None if the reward does not apply, returned None, or failed and failures are skipped.
        """
        applicable = [index for index, on in enumerate(applies) if on]
        answers = Answers([None] * len(batch), [{} for _ in range(len(batch))], [])
        if applicable:
            await self.set_up()
        for indices in _split(applicable, batch.group_ids, self.entry):
            try:
                result = await self._result(batch, indices)
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

    async def _work(self) -> None:
        """Run one job after another until a None comes."""
        while (item := await self._jobs.get()) is not None:
            job, future = item
            try:
                future.set_result(await job())
            except BaseException as error:
                future.set_exception(error)
            del item, job, future  # do not keep a batch in memory until the next job

    async def _result(self, batch: RewardBatch, indices: Sequence[int]) -> RewardResult:
        """The result of one call, with retries. Raises RewardFailed for the last failure."""
        attempt = 0
        while True:
            try:
                async with self.gate:
                    if self.closing.is_set():
                        raise CancelledError
                    await self._restart()
                    return await self.steps.run(lambda: self.host.call(batch.select(indices)), self.entry.seconds)
            except CallFailed as failure:
                if attempt == self.entry.retries or self.closing.is_set():
                    raise self._failed(failure, tries=attempt + 1, of_call=True) from failure.__cause__
            with suppress(TimeoutError):
                await asyncio.wait_for(self.closing.wait(), min(FIRST_PAUSE * 2**attempt, LONGEST_PAUSE))
            attempt += 1

    async def _restart(self) -> None:
        """Start a process that has ended again, and prepare the reward as before. Raises CallFailed."""
        if not self.host.gone:
            return
        try:
            await self.start()
        except Tdmr1Error as error:
            reason = f"cannot be restarted: {error.message}"
            raise CallFailed(reason, error.hint, code=error.code, values=error.values) from error
        try:
            if self._ready:
                await self.steps.run(partial(self.host.setup, self.device), None)
            if self._state is not None:
                await self.steps.run(partial(self.host.load_state, self._state), STATE_LIMIT)
        except CallFailed:
            self.host.end_call(None)  # the next call must not use a reward that is not prepared
            raise

    def _adopt_served_spec(self) -> None:
        """Take the limits of calls from a server that scores; the settings of the entry keep their precedence."""
        served_spec = getattr(self.entry.reward, "served_spec", None)
        if served_spec is not None:
            self.entry = replace(self.entry, spec=served_spec(self.entry.spec))
            if isinstance(self.host, ThreadHost):
                self.host.image_format = self.entry.spec.image_format

    @contextmanager
    def _named_failures(self) -> Iterator[None]:
        """Raise RewardFailed, with the name of the reward, instead of CallFailed."""
        try:
            yield
        except CallFailed as failure:
            raise self._failed(failure) from failure.__cause__

    def _failed(self, failure: CallFailed, tries: int = 1, *, of_call: bool = False) -> RewardFailed:
        """The error for a failed step, with the name of the reward. `of_call` is whether the step is a call."""
        message = f"{self.entry} {failure.reason}" + (f" (tried {tries} times)" if tries > 1 else "")
        values = {"reward": self.entry.name, "provenance": str(self.entry.provenance), "tries": tries}
        hint = failure.hint or place_hint(failure.values)
        if of_call and not self.entry.in_run:
            hint = hint or "correct the reward"
        elif of_call and (failure.hint is None or "line" in failure.values):
            hint = join_hints(hint, CALL_HINTS[self.entry.on_failure])
        return RewardFailed(message, hint, code=failure.code, values={**values, **failure.values})


def _warn(failure: Failure) -> None:
    count, iteration = len(failure.batch), failure.batch.context.iteration + 1
    images = "1 image has" if count == 1 else f"{count} images have"
    values = {**failure.error.values, "reward": failure.reward, "images": count, "iteration": iteration}
    message = f"{failure.error.message}; {images} no score in iteration {iteration}"
    warnings.warn(RewardWarning(message, values=values), stacklevel=2)


def _split(images: Sequence[int], group_ids: Sequence[int], entry: ActiveReward) -> list[Sequence[int]]:
    """The images of each call, as indices: at most `batch_size` images.

    For a groupwise reward: as many whole groups as fit, and at least one.
    """
    limit = entry.batch_size or entry.spec.batch_size
    if not entry.spec.groupwise:
        return [images[start : start + limit] for start in range(0, len(images), limit)]
    groups: dict[int, list[int]] = {}
    for image in images:
        groups.setdefault(group_ids[image], []).append(image)
    calls: list[list[int]] = []
    for members in groups.values():
        if calls and len(calls[-1]) + len(members) <= limit:
            calls[-1] += members
        else:
            calls.append(members)
    return list(calls)
