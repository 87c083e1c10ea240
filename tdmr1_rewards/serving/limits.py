"""Limits of the connections of both servers, which hold before a token is checked.

uvicorn limits the size of headers and the time of an idle connection. This module adds the time for the headers, the
body and the reading of an answer, and the number of connections. Refusals are JSON, as those of the apps are.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from contextlib import suppress
from typing import Any, cast

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

logger = logging.getLogger(__name__)

MOST_CONNECTIONS, MOST_BACKLOG = 512, 128
"""Largest number of open connections, and of connections that wait to be accepted. A process with few file
descriptors opens fewer, and accepts fewer at once."""
MOST_HEADERS = 32 * 1024
"""Largest size of the headers of a request, in bytes."""
TIME = {"request": 5.0, "headers": 5.0, "body": 10.0, "rest": 5.0, "reader": 20.0}
"""Seconds that a client has to begin a request, to send its headers, its body and the rest of a body that was refused,
and to read an answer. A body and an answer get more time for each RATE bytes."""
RATE = 16 * 1024
TICK = 0.5
"""Seconds between two checks of a connection."""


class LimitedProtocol(H11Protocol):
    """HTTP with time limits. With too many connections, the one that has waited longest for a request is closed."""

    _waits: tuple[str | None, object]
    _began: float
    _deadline: float
    _timer: asyncio.TimerHandle

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Make room for the connection, or refuse it if all others have a request in progress."""
        super().connection_made(transport)
        self._waits = ("", None)
        self._update()
        self._timer = self.loop.call_later(TICK, self._tick)
        counted = [each for each in cast("set[LimitedProtocol]", self.connections) if not each._is_gone()]
        if len(counted) > most(MOST_CONNECTIONS, 2):
            waiting = [each for each in counted if each._waits[0] in ("request", "headers")]
            oldest = min(waiting, key=lambda each: each._began, default=self)
            oldest.turn_away(503, "the server has too many connections", "try again in a moment")

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Handle bytes of a request."""
        super().data_received(data)
        if self._waits[0] == "body":
            self._deadline = min(self._deadline + len(data) / RATE, self.loop.time() + TIME["body"])
        self._update()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._update()

    def send_400_response(self, msg: str) -> None:
        """Refuse invalid HTTP. uvicorn calls this while it handles the error, which has the status."""
        status = getattr(sys.exc_info()[1], "error_status_hint", 400)
        error = "the headers of the request are too large" if status == 431 else "the request is not valid HTTP"
        self.turn_away(status if status < 500 else 400, error, "send HTTP/1.1")

    def turn_away(self, status: int, error: str, hint: str) -> None:
        """Close the connection, with an answer if none has begun."""
        client = self.client[0] if self.client else "unknown"
        logger.warning("closed a connection from %s (%d): %s", client, status, error)
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and not self.transport.is_closing():
            body = json.dumps({"error": error, "hint": hint}).encode()
            headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
            events = (h11.Response(status_code=status, headers=list(headers.items())), h11.Data(data=body))
            with suppress(h11.LocalProtocolError):  # the answer to HEAD has no body
                for event in (*events, h11.EndOfMessage()):
                    self.transport.write(self.conn.send(event) or b"")
            self.transport.close()
        if not self.transport.is_closing() or self.transport.get_write_buffer_size():
            self.transport.abort()

    def _is_gone(self) -> bool:
        return self.transport.is_closing() and not self.transport.get_write_buffer_size()

    def _phase(self) -> str | None:
        """What the connection waits for; None for an answer of the app, which has its own limits."""
        if self.transport.is_closing() or self.flow.write_paused:
            return "reader"
        if self.conn.their_state is h11.IDLE:
            return "headers" if self.conn.trailing_data[0] else "request"
        if self.conn.their_state is h11.SEND_BODY:
            return "body" if self.conn.our_state is h11.SEND_RESPONSE else "rest"
        return None

    def _update(self) -> None:
        """Start the time limit of a new phase."""
        waits = (self._phase(), self.cycle)
        if waits != self._waits:
            self._waits, self._began = waits, self.loop.time()
            unread = self.transport.get_write_buffer_size() / RATE
            self._deadline = self._began + (TIME[waits[0]] + unread if waits[0] else float("inf"))

    def _tick(self) -> None:
        self._update()
        self._timer = self.loop.call_later(TICK, self._tick)
        if self.loop.time() < self._deadline:
            return
        if self._waits[0] == "request":
            self.transport.close()
        else:
            self.turn_away(408, "the client is too slow", "send the request again")


def server(app: Any, stopping_limit: int) -> uvicorn.Server:
    """A server with these limits. Requests in progress when it stops get `stopping_limit` seconds."""
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http=LimitedProtocol,
        ws="none",
        log_config=None,
        log_level="error",  # its warnings are about connections that LimitedProtocol logs too
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=most(MOST_BACKLOG, 8),
        h11_max_incomplete_event_size=MOST_HEADERS,
        timeout_graceful_shutdown=stopping_limit,
    )
    return _Server(config)


class _Server(uvicorn.Server):
    """Logs errors of the event loop, such as a failed accept, without a traceback."""

    async def startup(self, sockets: Any = None) -> None:
        """Listen."""
        asyncio.get_running_loop().set_exception_handler(_log_error)
        await super().startup(sockets)
        for each in sockets or ():  # uvicorn's backlog also is the number of connections that are accepted at once
            each.listen(MOST_BACKLOG)


def _log_error(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    logger.error("%s: %s", context["message"], context.get("exception"))


def most(limit: int, fraction: int) -> int:
    """`limit`, or 1 / `fraction` of the file descriptors that this process may open, if that is less."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows, which has no such limit
        return limit
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return limit if allowed == resource.RLIM_INFINITY else min(limit, allowed // fraction)
