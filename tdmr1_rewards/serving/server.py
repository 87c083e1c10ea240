"""Serves a reward to other machines, for `tdmr1 rewards serve NAME`: JSON and PNG over HTTP with a token, no pickle.

    POST /score    {"protocol": 1, "batch": {…}}    → {"protocol": 1, "scores": […], "details": […]}
    GET /info                                       → {"protocol": 1, "name": …, "batch_size": …, …}
    GET /health    (without a token)                → {"status": "ok"}

Errors are {"error": a sentence, "hint": … or null} with status 4xx for an invalid request, 500 for a failed reward and
503 for a full queue. The client is `tdmr1_rewards.sources.remote`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from tdmr1_rewards.api import Reward, RewardBatch, RewardResult, RewardSpec
from tdmr1_rewards.calling.wire import PROTOCOL, check_token, decode_batch, encode_result
from tdmr1_rewards.errors import Tdmr1Error
from tdmr1_rewards.registry import Provenance
from tdmr1_rewards.scoring.active_reward import ActiveReward
from tdmr1_rewards.scoring.runner import RewardRunner
from tdmr1_rewards.serving.web import Refusal, check_bearer, read_body, refusal_response

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


class RequestBatcher:
    """Joins waiting requests into calls of one reward, up to the batch size of the reward.

    Requests share a call only if they could be one batch of a run: the same context and image size, and no group or
    image id in two of them. A reward therefore sees only batches that it could also see in a run.
    """

    def __init__(self, reward: Reward, spec: RewardSpec, provenance: Provenance, device: str) -> None:
        entry = ActiveReward(spec.name, 1.0, spec, reward, provenance)
        self._name = spec.name
        self._max_images = spec.batch_size
        self._runner = RewardRunner([entry], "weighted_sum", 1, device)
        self._waiting: deque[tuple[RewardBatch, Future[RewardResult]]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    def set_up(self) -> None:
        """Set up the reward before the first request. Raises Tdmr1Error if this fails."""
        self._runner.set_up()

    def submit(self, batch: RewardBatch) -> Future[RewardResult]:
        """Queue a batch; returns the future of its checked result. Raises Refusal if the queue is full or closed."""
        future: Future[RewardResult] = Future()
        with self._changed:
            if self._closed or len(self._waiting) >= MAX_WAITING:
                raise Refusal(503, "too many requests are waiting", "try again in a moment")
            self._waiting.append((batch, future))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Refuse all waiting requests and close the reward. Raises Tdmr1Error if closing the reward fails."""
        with self._changed:
            self._closed = True
            for _, future in self._waiting:
                if future.set_running_or_notify_cancel():
                    future.set_exception(_stopping())
            self._waiting.clear()
            self._changed.notify()
        self._runner.close()

    def _run(self) -> None:
        while requests := self._next_call():
            running = [item for item in requests if item[1].set_running_or_notify_cancel()]
            if running:
                self._answer([batch for batch, _ in running], [future for _, future in running])

    def _next_call(self) -> list[tuple[RewardBatch, Future[RewardResult]]]:
        """Wait for a request; returns it and all requests that can share its call. Empty when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if self._closed:
                return []
            chosen = [self._waiting.popleft()]
            for item in list(self._waiting):
                if _can_share([batch for batch, _ in chosen], item[0], self._max_images):
                    chosen.append(item)
                    self._waiting.remove(item)
        return chosen

    def _answer(self, batches: Sequence[RewardBatch], futures: Sequence[Future[RewardResult]]) -> None:
        try:
            result = self._score(_joined(batches))
        except BaseException as error:
            if len(batches) == 1:
                futures[0].set_exception(_stopping() if isinstance(error, CancelledError) else error)
            else:  # repeat one by one, so that a request that makes the reward fail does not affect the others
                for batch, future in zip(batches, futures, strict=True):
                    self._answer([batch], [future])
            return
        start = 0
        for batch, future in zip(batches, futures, strict=True):
            rows = slice(start, start + len(batch))
            assert result.details is not None
            future.set_result(RewardResult(result.scores[rows], result.details[rows]))
            start += len(batch)

    def _score(self, batch: RewardBatch) -> RewardResult:
        scored = self._runner.score(batch)
        return RewardResult(scored.per_reward[self._name], [entry.get(self._name, {}) for entry in scored.details])


def _stopping() -> Refusal:
    return Refusal(503, "the server is stopping", "try again when it is back")


def build_app(
    reward: Reward,
    spec: RewardSpec,
    token: str,
    *,
    provenance: Provenance | None = None,
    device: str = "cpu",
    max_body: int = MAX_BODY,
) -> FastAPI:
    """The server as an ASGI app. Call `app.state.batcher.set_up()` to load the reward before the first request.

    Requests need the header `Authorization: Bearer TOKEN` and at most `max_body` bytes. Raises Tdmr1Error if `token`
    contains characters that an HTTP header cannot carry.
    """
    check_token(token)
    module = spec.factory.partition(":")[0]
    batcher = RequestBatcher(reward, spec, provenance or Provenance(spec.name, module, None, module), device)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(batcher.close)

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.batcher = batcher
    app.add_exception_handler(Refusal, _log_refusal)
    app.add_exception_handler(HTTPException, _http_error)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/info")
    async def info(request: Request) -> dict[str, Any]:
        check_bearer(request, token, TOKEN_HINT)
        shown = ("name", "summary", "batch_size", "groupwise", "score_range", "timeout")
        return {"protocol": PROTOCOL, "max_body": max_body, **{name: getattr(spec, name) for name in shown}}

    @app.post("/score")
    async def score(request: Request) -> JSONResponse:
        check_bearer(request, token, TOKEN_HINT)
        batch = await run_in_threadpool(_read_batch, await read_body(request, max_body, SIZE_HINT))
        try:
            result = await asyncio.wrap_future(batcher.submit(batch))
        except Tdmr1Error as error:
            raise Refusal(500, error.message, error.hint) from error
        return JSONResponse({"protocol": PROTOCOL, **encode_result(result)})

    return app


def serve(app: FastAPI, listening: socket.socket, ready: Callable[[], None]) -> None:
    """Set up the reward, call `ready`, and serve until SIGINT or SIGTERM.

    Raises Tdmr1Error if the reward cannot be set up.
    """
    app.state.batcher.set_up()
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=STOPPING_LIMIT)
    ready()
    uvicorn.Server(config).run(sockets=[listening])


def _read_batch(body: bytes) -> RewardBatch:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, "the request is not JSON") from error
    if not isinstance(document, dict):
        raise Refusal(400, f"the request is a JSON {type(document).__name__}, not an object")
    if document.get("protocol") != PROTOCOL:
        raise Refusal(
            400,
            f"the request has protocol version {document.get('protocol')}; this server needs version {PROTOCOL}",
            "install the same version of tdmr1 on both machines",
        )
    try:
        batch = decode_batch(document.get("batch"), "array")
    except Tdmr1Error as error:
        raise Refusal(422, error.message, error.hint) from error
    if not len(batch):
        raise Refusal(422, "the request has no images")
    # The run folder is on another machine: a reward must not write to this path here.
    return replace(batch, context=replace(batch.context, run_folder=None))


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


async def _log_refusal(request: Request, refusal: Any) -> JSONResponse:
    """Log a refusal as one short line, since it may quote the request, and respond to it."""
    sender = request.client.host if request.client else "unknown"
    error = " ".join(refusal.error.split())[:LOGGED]
    logger.warning("refused a %s from %s (%d): %s", request.method, sender, refusal.status, error)
    return await refusal_response(request, refusal)


async def _http_error(request: Request, error: Any) -> JSONResponse:
    sentence = f"{request.method} {request.url.path}: {error.detail}"
    return JSONResponse({"error": sentence, "hint": "use POST /score, GET /info or GET /health"}, error.status_code)
