"""Shared by both servers: token check, bodies of requests, their JSON, and JSON responses."""

from __future__ import annotations

import hmac
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from tdmr1_rewards.errors import shorten
from tdmr1_rewards.texts import documents

MOST_DEPTH = 32
"""Largest depth of lists and objects in the JSON of a request."""


class AsciiJSONResponse(Response):
    """A JSON response that can carry any text, also surrogates, which UTF-8 cannot represent."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The body."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


class Refusal(Exception):
    """A refused request: HTTP status, error sentence, hint, and values as in Tdmr1Error."""

    def __init__(
        self, status: int, error: str, hint: str | None = None, values: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(error)
        self.status = status
        self.error = error
        self.hint = hint
        self.values = dict(values or {})


class HangUp(Refusal):
    """The connection was closed before the request was complete. There is nobody to answer, and nothing to log."""


def check_bearer(request: Request, token: str, hint: str) -> None:
    """Raise Refusal for a request without `Authorization: Bearer TOKEN`."""
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), token.encode()):
        raise Refusal(401, "the request has no valid token" if given else "the request has no token", hint)


async def read_body(request: Request, max_bytes: int, hint: str | None = None) -> bytes:
    """The body of a request. Raises Refusal as soon as it exceeds `max_bytes`, without reading the rest."""
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise Refusal(415, "the body of the request is compressed", "send it without the header Content-Encoding")
    too_large = Refusal(413, f"the request is larger than {max_bytes} bytes", hint)
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        raise too_large
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > max_bytes:
                raise too_large
    except ClientDisconnect as error:
        raise HangUp(400, "the connection was closed before the request was complete") from error
    return bytes(body)


def parse_json(body: bytes) -> Any:
    """The JSON document of a body. Raises Refusal for anything else than strict JSON in UTF-8, for an object with the
    same field twice, for numbers that are infinite as floats, and for more than MOST_DEPTH lists and objects in each
    other.
    """
    try:
        return documents.parse_json(
            body, MOST_DEPTH, object_pairs_hook=_object, parse_constant=_finite, parse_float=_finite
        )
    except _TwiceError as error:
        name = shorten(ascii(str(error)))
        raise Refusal(400, f"the request has the field {name} twice in one object", "write each field once") from error
    except documents.TooDeepError as error:
        raise Refusal(400, f"the request has more than {MOST_DEPTH} lists and objects in each other") from error
    except ValueError as error:
        raise Refusal(400, "the request is not JSON") from error


class _TwiceError(Exception):
    """An object has a field twice."""


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise _TwiceError(name)
        fields[name] = value
    return fields


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


async def refusal_response(_: Request, refusal: Any) -> AsciiJSONResponse:
    """The response to a refused request: {"error": …, "hint": …, "values": {…}}."""
    headers = {"WWW-Authenticate": "Bearer"} if refusal.status == 401 else {}
    document = {"error": refusal.error, "hint": refusal.hint, "values": refusal.values}
    return AsciiJSONResponse(document, refusal.status, headers)
