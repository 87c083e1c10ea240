"""Serves a reward to other machines, for `tdmr1 rewards serve NAME`: JSON and PNG over HTTP with a token, no pickle.

    POST /score    {"protocol": 1, "batch": {…}}    → {"protocol": 1, "scores": […], "details": […]}
    GET /info                                       → {"protocol": 1, "name": …, "batch_size": …, …}
    GET /health    (without a token)                → {"status": "ok"}

Errors are {"error": a sentence, "hint": … or null, "values": {…}} with status 4xx for an invalid request, 500 for a
failed reward and 503 for a full queue. The values of a failed reward may have the file and line of its code. The client
is `tdmr1_rewards.sources.remote`. docs/reward_protocol.md describes all fields.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from tdmr1_rewards.api import Reward, RewardBatch, RewardResult, RewardSpec
from tdmr1_rewards.calling.reference import Reference
from tdmr1_rewards.calling.wire import PROTOCOL, check_token, encode_result, plain
from tdmr1_rewards.errors import Tdmr1Error, describe_error, one_line, printable
from tdmr1_rewards.registry import Provenance
from tdmr1_rewards.scoring.active_reward import ActiveReward
from tdmr1_rewards.scoring.runner import RewardRunner
from tdmr1_rewards.serving import limits
from tdmr1_rewards.serving.logs import escaped, logged
from tdmr1_rewards.serving.score_request import read_batch
from tdmr1_rewards.serving.web import AsciiJSONResponse, HangUp, Refusal, check_bearer, read_body, refusal_response

logger = logging.getLogger(__name__)

MAX_BODY = 256 * 1024 * 1024
"""Largest request body in bytes. A larger one is refused before it is read."""
MAX_WAITING = 64
"""Largest number of waiting requests. Further requests get status 503."""
LOGGED = 300
"""Largest number of characters of a logged error."""
STOPPING_LIMIT = 10
"""Seconds that a stopping server allows for requests in progress."""
TOKEN_HINT = "set TDMR1_REWARD_TOKEN to the token that the server printed"
SIZE_HINT = "send fewer images per request (option batch_size)"


Waiting = tuple[RewardBatch, "asyncio.Future[RewardResult]"]
"""The batch of a request and the future of its result."""


class RequestBatcher:
    """Joins waiting requests into calls of one reward, up to the batch size of the reward.

    Requests share a call only if they could be one batch of a run: the same context and image size, and no group or
    image id in two of them. A reward therefore sees only batches that it could also see in a run.
    """

    def __init__(
        self,
        reward: Reward | Reference,
        spec: RewardSpec,
        provenance: Provenance,
        device: str,
        python: Path | None = None,
    ) -> None:
        entry = ActiveReward(spec.name, 1.0, spec, reward, provenance, python=python, in_run=False)
        self._name = spec.name
        self._max_images = spec.batch_size
        self._runner = RewardRunner([entry], "weighted_sum", 1, device)
        self._waiting: deque[Waiting] = deque()
        self._calling: asyncio.Task[None] | None = None
        self._closed = False

    def set_up(self) -> None:
        """Set up the reward before the first request. Raises Tdmr1Error if this fails."""
        self._runner.set_up()

    async def score(self, batch: RewardBatch) -> RewardResult:
        """The checked result for a batch. Raises Refusal if the queue is full or closed, and Tdmr1Error."""
        if self._closed or len(self._waiting) >= MAX_WAITING:
            raise Refusal(503, "too many requests are waiting", "try again in a moment")
        future: asyncio.Future[RewardResult] = asyncio.get_running_loop().create_future()
        self._waiting.append((batch, future))
        if self._calling is None or self._calling.done():
            self._calling = asyncio.create_task(self._call())
        return await future

    async def close(self) -> None:
        """Refuse all waiting requests and close the reward. Raises Tdmr1Error if closing the reward fails."""
        self._closed = True
        _refuse(self._waiting)
        self._waiting.clear()
        await run_in_threadpool(self._runner.close)
        if self._calling is not None:
            await self._calling

    async def _call(self) -> None:
        """Call the reward until no request waits."""
        while self._waiting:
            await self._answer(self._next_call())

    def _next_call(self) -> list[Waiting]:
        """The first waiting request and all requests that can share its call."""
        chosen = [self._waiting.popleft()]
        for item in list(self._waiting):
            if _can_share([batch for batch, _ in chosen], item[0], self._max_images):
                chosen.append(item)
                self._waiting.remove(item)
        return chosen

    async def _answer(self, requests: Sequence[Waiting]) -> None:
        """Score requests in one call. A request whose sender has gone (its future is cancelled) is omitted."""
        requests = [request for request in requests if not request[1].done()]
        if not requests:
            return
        try:
            result = await self._score([batch for batch, _ in requests])
        except asyncio.CancelledError:  # by `close`
            _refuse(requests)
            return
        except Exception as error:
            if len(requests) > 1:  # repeat one by one: a request that makes the reward fail does not affect the others
                for request in requests:
                    await self._answer([request])
            elif not requests[0][1].done():
                requests[0][1].set_exception(error)
            return
        start = 0
        for batch, future in requests:
            rows = slice(start, start + len(batch))
            assert result.details is not None
            if not future.done():
                future.set_result(RewardResult(result.scores[rows], result.details[rows]))
            start += len(batch)

    async def _score(self, batches: Sequence[RewardBatch]) -> RewardResult:
        batch = await run_in_threadpool(_joined, batches)
        scored = await asyncio.wrap_future(self._runner.submit(batch))
        return RewardResult(scored.per_reward[self._name], [entry.get(self._name, {}) for entry in scored.details])


def _refuse(requests: Iterable[Waiting]) -> None:
    for _, future in requests:
        if not future.done():
            future.set_exception(Refusal(503, "the server is stopping", "try again when it is back"))


def build_app(
    reward: Reward | Reference,
    spec: RewardSpec,
    token: str,
    *,
    provenance: Provenance | None = None,
    device: str = "cpu",
    python: Path | None = None,
    max_body: int = MAX_BODY,
) -> FastAPI:
    """The server as an ASGI app. Call `app.state.batcher.set_up()` to load the reward before the first request.

    A Reference is built in another process, with the interpreter `python` or this one. Requests need the header
    `Authorization: Bearer TOKEN` and at most `max_body` bytes. Raises Tdmr1Error if `token` contains characters that an
    HTTP header cannot carry, and if a reward in another process cannot be built.
    """
    check_token(token)
    module = spec.factory.partition(":")[0]
    batcher = RequestBatcher(reward, spec, provenance or Provenance(spec.name, module, None, module), device, python)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await batcher.close()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.batcher = batcher
    app.add_exception_handler(Refusal, _log_refusal)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _internal_error)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/info")
    async def info(request: Request) -> dict[str, Any]:
        check_bearer(request, token, TOKEN_HINT)
        shown = ("name", "summary", "batch_size", "groupwise", "image_format", "score_range", "timeout")
        return {"protocol": PROTOCOL, "max_body": max_body, **{name: getattr(spec, name) for name in shown}}

    @app.post("/score")
    async def score(request: Request) -> AsciiJSONResponse:
        check_bearer(request, token, TOKEN_HINT)
        batch = await run_in_threadpool(read_batch, await read_body(request, max_body, SIZE_HINT))
        try:
            result = await batcher.score(batch)
        except Tdmr1Error as error:
            if os.environ.get("TDMR1_DEBUG"):
                logger.warning("the reward failed", exc_info=error)
            raise Refusal(500, error.message, error.hint, plain(error.values)) from error
        return AsciiJSONResponse({"protocol": PROTOCOL, **encode_result(result)})

    return app


def serve(app: FastAPI, listening: socket.socket, ready: Callable[[], None]) -> None:
    """Set up the reward, call `ready`, and serve until SIGINT or SIGTERM.

    Raises Tdmr1Error if the reward cannot be set up.
    """
    app.state.batcher.set_up()
    server = limits.server(app, STOPPING_LIMIT)
    ready()
    with logged(logging.StreamHandler()):
        server.run(sockets=[listening])


def _can_share(batches: Sequence[RewardBatch], other: RewardBatch, max_images: int) -> bool:
    """Whether the batch `other` can be added to a call with these batches."""
    first = batches[0]
    return (
        sum(map(len, batches)) + len(other) <= max_images
        and other.context == first.context
        and other.images.shape[1:] == first.images.shape[1:]
        and all(set(other.image_ids).isdisjoint(batch.image_ids) for batch in batches)
        and all(set(other.group_ids).isdisjoint(batch.group_ids) for batch in batches)
    )


def _joined(batches: Sequence[RewardBatch]) -> RewardBatch:
    if len(batches) == 1:
        return batches[0]

    def chained(name: str) -> list[Any]:
        return [item for batch in batches for item in getattr(batch, name)]

    return RewardBatch(
        images=np.concatenate([batch.images for batch in batches]),
        prompts=chained("prompts"),
        metadata=chained("metadata"),
        group_ids=chained("group_ids"),
        image_ids=chained("image_ids"),
        context=batches[0].context,
    )


async def _log_refusal(request: Request, refusal: Any) -> AsciiJSONResponse:
    """Log a refusal as one short line, since it may quote the request, and respond to it."""
    sender = request.client.host if request.client else "unknown"
    error = printable(one_line(refusal.error))[:LOGGED]
    if not isinstance(refusal, HangUp):
        logger.warning("refused a %s from %s (%d): %s", request.method, sender, refusal.status, error)
    return await refusal_response(request, refusal)


async def _http_error(request: Request, error: Any) -> AsciiJSONResponse:
    sentence = f"{request.method} {escaped(request.scope['path'])}: {error.detail}"
    hint = "use POST /score, GET /info or GET /health"
    return AsciiJSONResponse({"error": sentence, "hint": hint}, error.status_code)


async def _internal_error(_: Request, error: Any) -> AsciiJSONResponse:
    return AsciiJSONResponse({"error": f"internal error: {describe_error(error)}", "hint": "please report it"}, 500)
