"""Shared by both servers: token check, size limit of requests, and JSON error responses."""

from __future__ import annotations

import hmac
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse


class Refusal(Exception):
    """A refused request: HTTP status, error sentence and hint."""

    def __init__(self, status: int, error: str, hint: str | None = None) -> None:
        super().__init__(error)
        self.status = status
        self.error = error
        self.hint = hint


def check_bearer(request: Request, token: str, hint: str) -> None:
    """Raise Refusal for a request without `Authorization: Bearer TOKEN`."""
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), token.encode()):
        raise Refusal(401, "the request has no valid token" if given else "the request has no token", hint)


async def read_body(request: Request, max_bytes: int, hint: str | None = None) -> bytes:
    """The body of a request. Raises Refusal as soon as it exceeds `max_bytes`, without reading the rest."""
    too_large = Refusal(413, f"the request is larger than {max_bytes} bytes", hint)
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise too_large
    return bytes(body)


async def refusal_response(_: Request, refusal: Any) -> JSONResponse:
    """The response to a refused request: {"error": …, "hint": …}."""
    headers = {"WWW-Authenticate": "Bearer"} if refusal.status == 401 else {}
    return JSONResponse({"error": refusal.error, "hint": refusal.hint}, refusal.status, headers)
