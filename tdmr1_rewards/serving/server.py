"""A reward for other machines: `tdmr1 rewards serve NAME`. JSON and PNG over HTTP with a token; nothing is unpickled.

    POST /score    {"protocol": 1, "batch": {…}}    → {"protocol": 1, "scores": […], "details": […]}
    GET /info                                       → {"protocol": 1, "name": …, "batch_size": …, …}
    GET /health    (without a token)                → {"status": "ok"}

Every answer that is not 200 is {"error": a sentence, "hint": … or null}: 4xx for a request that is wrong, 500 for a
reward that failed, 503 for a server that has no room. `tdmr1_rewards.sources.remote` is the other end.
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
"""Bytes of a request; a larger one is refused unread."""
MAX_WAITING = 64
"""Requests that may wait for the reward; a further one is asked to come back."""
LOGGED = 300
"""Characters of a refusal that are logged."""
STOPPING_LIMIT = 10
"""Seconds that a stopping server gives to the requests it has begun."""
TOKEN_HINT = "set TDMR1_REWARD_TOKEN to the token that the server printed"
SIZE_HINT = "send fewer images a call (batch_size)"


class RequestBatcher:
    """Asks one reward on behalf of many requests: those that wait together share a call, up to its batch size.

    Only requests that one iteration of one run could have made share it (the same context and picture size, no group
    or image twice), so a reward that looks at these sees nothing that it would not see in the run itself.
    """

    def __init__(self, reward: Reward, spec: RewardSpec, provenance: Provenance, device: str) -> None:
        entry = ActiveReward(spec.name, 1.0, spec, reward, provenance)
        self._name = spec.name
        self._most = spec.batch_size
        self._runner = RewardRunner([entry], "weighted_sum", 1, device)
        self._waiting: deque[tuple[RewardBatch, Future[RewardResult]]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._thread.start()

    def set_up(self) -> None:
        """Load what the reward needs before the first request. Raises Tdmr1Error if it cannot be had."""
        self._runner.set_up()

    def submit(self, batch: RewardBatch) -> Future[RewardResult]:
        """The future of the reward's checked answer. Raises Refusal where too many wait, or the batcher is closed."""
        future: Future[RewardResult] = Future()
        with self._changed:
            if self._closed or len(self._waiting) >= MAX_WAITING:
                raise Refusal(503, "the server has no room for the request", "try again in a moment")
            self._waiting.append((batch, future))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Turn away who waits, and close the reward. Raises Tdmr1Error if that fails."""
        with self._changed:
            self._closed = True
            for _, future in self._waiting:
                if future.set_running_or_notify_cancel():
                    future.set_exception(_stopping())
            self._waiting.clear()
            self._changed.notify()
        self._runner.close()

    def _work(self) -> None:
        while chosen := self._next():
            begun = [item for item in chosen if item[1].set_running_or_notify_cancel()]
            if begun:
                self._answer([batch for batch, _ in begun], [future for _, future in begun])

    def _next(self) -> list[tuple[RewardBatch, Future[RewardResult]]]:
        """The first request and all others that can share its call, as soon as there is one; none when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if self._closed:
                return []
            chosen = [self._waiting.popleft()]
            for item in list(self._waiting):
                if _can_share([batch for batch, _ in chosen], item[0], self._most):
                    chosen.append(item)
                    self._waiting.remove(item)
        return chosen

    def _answer(self, batches: Sequence[RewardBatch], futures: Sequence[Future[RewardResult]]) -> None:
        try:
            result = self._scored(_joined(batches))
        except BaseException as error:
            if len(batches) == 1:
                futures[0].set_exception(_stopping() if isinstance(error, CancelledError) else error)
            else:  # one of them may be to blame: the others must not suffer for it
                for batch, future in zip(batches, futures, strict=True):
                    self._answer([batch], [future])
            return
        start = 0
        for batch, future in zip(batches, futures, strict=True):
            own = slice(start, start + len(batch))
            assert result.details is not None
            future.set_result(RewardResult(result.scores[own], result.details[own]))
            start += len(batch)

    def _scored(self, batch: RewardBatch) -> RewardResult:
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
    """The server as an ASGI app; `app.state.batcher.set_up()` loads the reward before the first request does.

    `token` is what requests must carry as `Authorization: Bearer TOKEN`, `max_body` the bytes that one may have. Raises
    Tdmr1Error for a token that no header can carry.
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
    app.add_exception_handler(HTTPException, _told_http)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/info")
    async def info(request: Request) -> dict[str, Any]:
        check_bearer(request, token, TOKEN_HINT)
        named = ("name", "summary", "batch_size", "groupwise", "score_range", "timeout")
        return {"protocol": PROTOCOL, "max_body": max_body, **{name: getattr(spec, name) for name in named}}

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
    """Load the reward, say that it is `ready`, and answer until SIGINT or SIGTERM.

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
            f"the request is in version {document.get('protocol')} of the protocol, and this server speaks {PROTOCOL}",
            "install the same version of tdmr1 on both machines",
        )
    try:
        batch = decode_batch(document.get("batch"), "array")
    except Tdmr1Error as error:
        raise Refusal(422, error.message, error.hint) from error
    if not len(batch):
        raise Refusal(422, "the request has no images")
    # A folder of another machine means nothing here, and must not be written to.
    return replace(batch, context=replace(batch.context, run_folder=None))


def _can_share(batches: Sequence[RewardBatch], other: RewardBatch, most: int) -> bool:
    """Whether a further request fits into the call that these have."""
    first = batches[0]
    return (
        sum(map(len, batches)) + len(other) <= most
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
    """Tell whoever serves, too: in one line of no great length, as a refusal may quote the request."""
    sender = request.client.host if request.client else "somebody"
    error = " ".join(refusal.error.split())[:LOGGED]
    logger.warning("refused a %s from %s (%d): %s", request.method, sender, refusal.status, error)
    return await refusal_response(request, refusal)


async def _told_http(request: Request, error: Any) -> JSONResponse:
    told = f"{request.method} {request.url.path}: {error.detail}"
    return JSONResponse(
        {"error": told, "hint": "POST /score, GET /info and GET /health are what there is"}, error.status_code
    )
