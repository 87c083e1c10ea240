"""Serves the report of running trainings on this machine: `tdmr1 report --watch`.

    GET  /  /page.js  …            the files of the page; they contain no data and need no token
    GET  /api/data?version=V       {"version": …} and, if the version is another one, "data": what the page shows

`/api/data` needs `Authorization: Bearer TOKEN`. Requests of other sites are refused, as on the labelling page.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.runs.checkpoints.resume import RESUMES
from tdmr1_core.runs.checkpoints.run_config import CONFIG
from tdmr1_core.runs.metrics_log import LOGS
from tdmr1_core.runs.output.export import EXPORT
from tdmr1_core.runs.output.previews import BEFORE_AFTER, SAMPLES
from tdmr1_core.runs.output.report import read_report
from tdmr1_core.runs.output.report_page import live_page, page_data, page_files
from tdmr1_core.runs.output.resources import RESOURCES

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from uvicorn import Server

HOST = "127.0.0.1"
STOPPING_LIMIT = 2
"""Seconds that a stopping server allows for requests in progress."""
POLICY = "default-src 'self'; img-src 'self' blob:"
WATCHED = (CONFIG, *LOGS, RESOURCES, RESUMES, BEFORE_AFTER, SAMPLES, EXPORT)
"""Files and folders of a run whose change changes the report. A new file changes the time of its folder."""


class LiveData:
    """The data of a report, read again when the run folders have changed. Threads may share it."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders
        self._lock = threading.Lock()
        self._version = ""
        self._data: Any = None

    def answer(self, known: str) -> bytes:
        """The JSON answer for a page that has the version `known`. Raises Tdmr1Error for folders that are no runs."""
        with self._lock:
            version = self._current()
            if version != self._version:
                self._data = page_data([read_report(folder) for folder in self._folders])
                self._version = version
            document = {"version": version} if known == version else {"version": version, "data": self._data}
        return json.dumps(document, allow_nan=False, separators=(",", ":")).encode("ascii")

    def _current(self) -> str:
        """A hash of the times and sizes of the files."""
        stamps = []
        for folder in self._folders:
            for name in WATCHED:
                try:
                    status = (folder / name).stat()
                    stamps.append((name, status.st_mtime_ns, status.st_size))
                except OSError:
                    stamps.append((name, 0, 0))
        return hashlib.sha256(repr(stamps).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class LiveReport:
    """A page that is ready to be served at `url`, which contains its token."""

    url: str
    _server: Server
    _socket: socket.socket

    def run(self) -> None:
        """Serve the page until SIGINT, SIGTERM or `stop`."""
        self._server.run(sockets=[self._socket])

    def stop(self) -> None:
        """Make `run` return. May be called from any thread."""
        self._server.should_exit = True

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def open_live_report(folders: Sequence[Path], port: int = 0) -> LiveReport:
    """Listen on 127.0.0.1 for the report of these run folders; port 0 is any free port.

    Raises Tdmr1Error if the port cannot be used, or if the extra `serve` is not installed.
    """
    try:
        from tdmr1_rewards.serving import limits
        from tdmr1_rewards.serving.addresses import listen

        token = secrets.token_urlsafe(32)
        app = build_app(LiveData(folders), token)
    except ModuleNotFoundError as error:
        raise Tdmr1Error(
            f"--watch needs {error.name}, which is not installed",
            "pip install 'tdmr1[serve]'",
            code="dependency-missing",
            values={"package": error.name, "install": "tdmr1[serve]"},
        ) from error
    listening = listen(HOST, port)
    url = f"http://{HOST}:{listening.getsockname()[1]}/#{token}"
    return LiveReport(url, limits.server(app, STOPPING_LIMIT), listening)


def build_app(data: LiveData, token: str) -> Starlette:
    """The app of the page, as an ASGI app."""
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.middleware import Middleware
    from starlette.responses import Response
    from starlette.routing import Route

    from tdmr1_rewards.feedback.server import TYPES, RequestFilter
    from tdmr1_rewards.serving.web import Refusal, refusal_response

    async def refuse(request: Request, error: Any) -> Response:
        found = error if isinstance(error, Refusal) else Refusal(503, error.message, error.hint)
        return await refusal_response(request, found)

    async def answer(request: Request) -> Response:
        content = await run_in_threadpool(data.answer, request.query_params.get("version", ""))
        return Response(content, media_type="application/json")

    async def no_icon(_: Request) -> Response:
        return Response(status_code=204)

    def route(path: str, content: bytes, media_type: str) -> Route:
        async def file(_: Request) -> Response:
            return Response(content, media_type=media_type)

        return Route(path, file)

    return Starlette(
        routes=[
            route("/", live_page(POLICY).encode(), TYPES[".html"]),
            *(route(f"/{name}", content, TYPES[Path(name).suffix]) for name, content in page_files()),
            Route("/api/data", answer),
            Route("/favicon.ico", no_icon),
        ],
        middleware=[Middleware(RequestFilter, token=token, host=HOST, refuse=refuse)],
        exception_handlers={Tdmr1Error: refuse, Refusal: refuse},
    )
