"""The labelling page, as an ASGI app.

    GET  /  /page.js  …                the files of the page; they contain no data and need no token
    GET  /api/state?person=&name=      the open rounds, their progress, and who is present
    GET  /api/items?person=&limit=     the next items for this person; groups=1 completes the last group
    GET  /api/images/HASH              an image of the store
    POST /api/answers                  {"key", "item", "round", "person", "name", "answer"}
    POST /api/undo                     {"key", "person"}

Every path under /api/ needs `Authorization: Bearer TOKEN`. There are no cookies, so the page of another site cannot
make a browser send an authorized request; requests with the Origin or Host of another site are refused as well. A
refused request gets {"error": a sentence, "hint": … or null}, and one line in the log.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from fastapi import FastAPI, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tdmr1_rewards.calling.wire import check_token
from tdmr1_rewards.errors import Tdmr1Error, describe_error
from tdmr1_rewards.feedback.overview import Overview, SharedOverview
from tdmr1_rewards.feedback.records import Offer, UnknownItem
from tdmr1_rewards.feedback.store import FeedbackStore
from tdmr1_rewards.serving.addresses import ANY_HOST, is_loopback
from tdmr1_rewards.serving.web import (
    AsciiJSONResponse,
    HangUp,
    Refusal,
    check_bearer,
    parse_json,
    read_body,
    refusal_response,
)

MAX_BODY = 64 * 1024
"""Largest request body in bytes. A larger one is refused before it is read."""
MAX_ITEMS = 64
"""Largest `limit` of /api/items."""
PRESENCE = 15.0
"""Seconds after their last request for which a person counts as present."""
MOST_PEOPLE = 1000
"""Largest number of people who are counted as present."""
PAGE = Path(__file__).with_name("page")
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
TOKEN_HINT = "open the complete link that tdmr1 printed, including the part after the #"
SECURITY = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}

Log = Callable[[str], None]
"""Writes a line to the log."""
Name = Annotated[str, StringConstraints(max_length=60, strip_whitespace=True)]
Id = Annotated[str, StringConstraints(pattern=r"^[\w-]{1,64}$")]
Number = Annotated[int, Field(ge=1, lt=2**63)]
Body = TypeVar("Body", bound=BaseModel)


class AnswerBody(BaseModel):
    """The body of POST /api/answers."""

    model_config = ConfigDict(extra="forbid", strict=True)
    key: Id
    item: Number
    round: Number
    person: Id
    name: Name = ""
    answer: Literal["like", "dislike", "skip"]


class UndoBody(BaseModel):
    """The body of POST /api/undo."""

    model_config = ConfigDict(extra="forbid", strict=True)
    key: Id
    person: Id


class People:
    """The people who sent a request lately, with the names that they entered."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[str, tuple[float, str]] = {}

    def see(self, person: str, name: str) -> None:
        """Record that a person is present."""
        with self._lock:
            self._seen.pop(person, None)
            self._seen[person] = (time.monotonic(), name)  # the last entry is the newest
            if len(self._seen) > MOST_PEOPLE:
                del self._seen[next(iter(self._seen))]

    def names(self) -> list[str]:
        """The name of each person who is present; it may be empty."""
        limit = time.monotonic() - PRESENCE
        with self._lock:
            return [name for seen, name in self._seen.values() if seen > limit]


def build_app(store: FeedbackStore, token: str, *, host: str = "127.0.0.1", log: Log) -> FastAPI:
    """The app. `host` is the address it listens on; `log` gets a line for each refused request.

    `app.state.people` holds the people who are present. Raises Tdmr1Error if `token` contains characters that an HTTP
    header cannot carry.
    """
    check_token(token)
    people = People()
    overview = SharedOverview(store)

    async def refuse(request: Request, error: Any) -> AsciiJSONResponse:
        refusal = _as_refusal(request, error)
        if not isinstance(refusal, HangUp):
            log(_log_line(request, refusal))
        response = await refusal_response(request, refusal)
        if request.method == "POST":  # the rest of its body is not read
            response.headers["Connection"] = "close"
        return response

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.state.people = people
    for kind in (Refusal, HTTPException, RequestValidationError, Tdmr1Error, Exception):
        app.add_exception_handler(kind, refuse)
    app.add_middleware(RequestFilter, token=token, host=host, refuse=refuse)
    _add_page(app)

    @app.get("/api/state")
    def state(person: Annotated[Id, Query()], name: Annotated[Name, Query()] = "") -> AsciiJSONResponse:
        people.see(person, name)
        return AsciiJSONResponse(_state(overview.get(), store, person, people.names()))

    @app.get("/api/items")
    def items(
        person: Annotated[Id, Query()],
        limit: Annotated[int, Query(ge=1, le=MAX_ITEMS)] = 8,
        groups: Annotated[bool, Query()] = False,
    ) -> AsciiJSONResponse:
        return AsciiJSONResponse([_offer(offer) for offer in store.next_items(person, limit, whole_groups=groups)])

    @app.get("/api/images/{hash}")
    def image(hash: str) -> Response:
        path = store.image_path(hash)
        try:
            content = path.read_bytes() if path is not None else None
        except OSError:  # it was removed in the meantime, or cannot be read
            content = None
        if content is None:
            raise Refusal(404, "there is no image with this hash")
        caching = {"Cache-Control": "private, max-age=31536000, immutable", "Vary": "Authorization"}
        return Response(content, media_type="image/png", headers=caching)

    @app.post("/api/answers")
    async def answers(request: Request) -> dict[str, Any]:
        given = _parsed(AnswerBody, await read_body(request, MAX_BODY))
        people.see(given.person, given.name)
        stored = await run_in_threadpool(
            store.give,
            key=given.key,
            item_id=given.item,
            round_id=given.round,
            person=given.person,
            answer=given.answer,
            name=given.name,
        )
        return {"item": stored.item.id, "answer": stored.answer}

    @app.post("/api/undo")
    async def undo(request: Request) -> dict[str, Any]:
        given = _parsed(UndoBody, await read_body(request, MAX_BODY))
        offer = await run_in_threadpool(store.undo, given.person, key=given.key)
        return {"undone": _offer(offer) if offer else None}

    return app


class RequestFilter:
    """Refuses requests of other sites before they are read, and adds security headers to every response."""

    def __init__(self, app: ASGIApp, token: str, host: str, refuse: Callable[..., Any]) -> None:
        self._app = app
        self._token = token
        self._host = host
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(SECURITY)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        request = Request(scope, receive)
        try:
            self._check(request)
        except Refusal as refusal:
            response = await self._refuse(request, refusal)
            await response(scope, receive, send_secured)
            return
        await self._app(scope, receive, send_secured)

    def _check(self, request: Request) -> None:
        host = request.headers.get("host", "")
        if not names_this_server(host, self._host):
            raise Refusal(421, f"the request is for the host {host!r}, not for this server", TOKEN_HINT)
        origin = request.headers.get("origin")
        if origin is not None and origin.lower() != f"http://{host}".lower():
            raise Refusal(403, f"the request comes from a page of another site, {origin!r}", TOKEN_HINT)
        if request.scope["path"].startswith("/api/"):
            check_bearer(request, self._token, TOKEN_HINT)


def names_this_server(header: str, host: str) -> bool:
    """Whether a Host header names the server that listens on `host`.

    A server that listens on all addresses accepts any IP address, because a foreign domain name cannot be one. The port
    is not compared: a tunnel has another one.
    """
    name = header.rpartition(":")[0] if header.rpartition(":")[2].isdigit() else header
    name = name.strip("[]").lower()
    if name in ("localhost", host.lower()):
        return True
    if is_loopback(host):
        return is_loopback(name)
    if name in _own_names():
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return host in ANY_HOST


@cache
def _own_names() -> tuple[str, str]:
    """The names of this machine. They are read once, because a name server may be slow."""
    return socket.gethostname().lower(), socket.getfqdn().lower()


def _add_page(app: FastAPI) -> None:
    """Add a route for each file of the page. The files are read once."""

    def add(path: str, body: bytes, media_type: str) -> None:
        @app.get(path)
        async def file() -> Response:
            return Response(body, media_type=media_type)

    for file in sorted(PAGE.iterdir()):
        if file.suffix in TYPES:
            add("/" if file.name == "index.html" else f"/{file.name}", file.read_bytes(), TYPES[file.suffix])


def _state(overview: Overview, store: FeedbackStore, person: str, people: list[str]) -> dict[str, Any]:
    shown = overview.shown
    return {
        "time": time.time(),
        "read": overview.read,
        "question": store.question(),
        "message": store.message(),
        "rounds": [each.id for each in overview.rounds],
        "round": asdict(shown) if shown else None,
        "done": overview.progress.done,
        "all": overview.progress.items,
        "remaining": max(0, overview.unfinished - store.judged(person)),
        "agreement": asdict(overview.agreement),
        "people": people,
    }


def _offer(offer: Offer) -> dict[str, Any]:
    item = offer.item
    return {
        "item": item.id,
        "hash": item.hash,
        "prompt": item.prompt,
        "round": offer.round.id,
        "title": offer.round.title,
        "group": offer.group,
    }


def _parsed(kind: type[Body], body: bytes) -> Body:
    try:
        return kind.model_validate(parse_json(body))
    except ValidationError as error:
        raise _wrong_values(error.errors()) from error


def _wrong_values(errors: Any) -> Refusal:
    """A refusal that describes the first invalid field, without the value that was sent."""
    first = errors[0]
    where = ".".join(str(part) for part in first["loc"] if part not in ("body", "query"))
    return Refusal(422, f"{where or 'the request'}: {first['msg'][:1].lower()}{first['msg'][1:]}")


def _as_refusal(request: Request, error: Any) -> Refusal:
    if isinstance(error, Refusal):
        return error
    if isinstance(error, UnknownItem):
        return Refusal(404, error.message, error.hint)
    if isinstance(error, Tdmr1Error):
        return Refusal(503, error.message, error.hint)
    if isinstance(error, RequestValidationError):
        return _wrong_values(error.errors())
    if isinstance(error, HTTPException):
        return Refusal(error.status_code, f"{request.method} {request.scope['path'][:100]!r}: {error.detail}")
    return Refusal(500, f"internal error: {describe_error(error)}", "please report it")


def _log_line(request: Request, refusal: Refusal) -> str:
    """One log line: client, request and reason. It has no query, and control characters in the path are escaped."""
    client = request.client.host if request.client else "unknown"
    return (
        f"{client} {request.method} {request.scope['path'][:100]!r} refused ({refusal.status}): {refusal.error[:200]}"
    )
