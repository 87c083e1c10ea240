"""What the servers have in common: tokens, the size of requests, and refusals in sentences."""

from __future__ import annotations

import hmac
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse


class Refusal(Exception):
    """A request that is not answered: the HTTP status, a sentence and a hint."""

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


async def read_body(request: Request, most: int, hint: str | None = None) -> bytes:
    """The whole body. Raises Refusal as soon as it is known to have more than `most` bytes."""
    too_large = Refusal(413, f"the request is larger than {most} bytes", hint)
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > most:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise too_large
    return bytes(body)


async def refusal_response(_: Request, refusal: Any) -> JSONResponse:
    """A refusal as {"error": …, "hint": …}."""
    headers = {"WWW-Authenticate": "Bearer"} if refusal.status == 401 else {}
    return JSONResponse({"error": refusal.error, "hint": refusal.hint}, refusal.status, headers)
