"""Runs the labelling page: in the process of `tdmr1 label`, or in a child process of a training run.

    python -m tdmr1_rewards.feedback.serving --folder F [--host H] [--port P] --with-parent

prints one line of JSON on stdout: {"url": …}, or {"error", "hint", "code", "values"} if it cannot start. It exits when
its stdin is closed, and so when its parent has died. Token and port are kept in the folder, so that the same link works
after a restart. `FeedbackPage` starts and stops the child process.
"""

from __future__ import annotations

import argparse
import json
import logging
import logging.handlers
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tdmr1_rewards.errors import Tdmr1Error
from tdmr1_rewards.serving.addresses import listen, reachable
from tdmr1_rewards.serving.logs import logged
from tdmr1_rewards.texts.documents import parse_json

if TYPE_CHECKING:
    from uvicorn import Server

    from tdmr1_rewards.feedback.store import FeedbackStore

logger = logging.getLogger(__name__)

TOKEN, PORT, LOG = "token", "port", "server.log"
LOG_SIZE = 1 << 20
"""Bytes of the log file; one older file is kept."""
STARTING_LIMIT = 60.0
"""Seconds that the child process may take until it listens."""
STOPPING_LIMIT = 5
"""Seconds that a stopping server allows for requests in progress."""


@dataclass(frozen=True)
class Page:
    """A page that is ready to be served. `names` returns the names of the people present (a name may be empty)."""

    url: str
    store: FeedbackStore
    names: Callable[[], list[str]]
    _server: Server
    _socket: socket.socket
    _handlers: Sequence[logging.Handler]

    def run(self) -> None:
        """Serve the page until SIGINT, SIGTERM or `stop`."""
        with ExitStack() as logs:
            for handler in self._handlers:
                logs.enter_context(logged(handler))
            self._server.run(sockets=[self._socket])

    def close(self) -> None:
        """Close the store and the socket."""
        self._socket.close()
        self.store.close()

    def stop(self) -> None:
        """Make `run` return. May be called from any thread."""
        self._server.should_exit = True


def open_page(folder: Path, host: str, port: int, log: Callable[[str], None] | None = None) -> Page:
    """Listen on `host` and `port` for the page of a feedback folder.

    Port 0 means the last port of this folder if it is free, and otherwise any free port. Refused requests are logged to
    `server.log` in the folder and to `log`. Raises Tdmr1Error if the port cannot be used, if the folder is not a
    feedback store, or if the extra `human` is not installed.
    """
    try:
        from tdmr1_rewards.feedback.server import build_app
        from tdmr1_rewards.serving import limits
    except ModuleNotFoundError as error:
        raise Tdmr1Error(
            f"the labelling page needs {error.name}, which is not installed",
            "pip install 'tdmr1[human]'",
            code="dependency-missing",
            values={"package": error.name, "install": "tdmr1[human]"},
        ) from error
    from tdmr1_rewards.feedback.store import FeedbackStore

    store = FeedbackStore(folder)
    try:
        token = _token(folder)
        listening = _listen(folder, host, port)
    except BaseException:
        store.close()
        raise
    app = build_app(store, token, host=host, log=lambda line: logger.warning("%s", line))
    handlers: list[logging.Handler] = [
        logging.handlers.RotatingFileHandler(
            folder / LOG, maxBytes=LOG_SIZE, backupCount=1, encoding="utf-8", delay=True
        )
    ]
    if log is not None:
        handlers.append(_Calling(log))
    server = limits.server(app, STOPPING_LIMIT)
    url = f"http://{reachable(host)}:{listening.getsockname()[1]}/#{token}"
    return Page(url, store, app.state.people.names, server, listening, handlers)


class _Calling(logging.Handler):
    """Calls a function with each line of the log."""

    def __init__(self, call: Callable[[str], None]) -> None:
        super().__init__()
        self._call = call

    def emit(self, record: logging.LogRecord) -> None:
        """Log a record."""
        self._call(self.format(record))


class FeedbackPage:
    """The page of a feedback folder in a child process, which ends when this process ends."""

    def __init__(self, folder: Path, host: str, port: int) -> None:
        self._folder = folder
        self._host = host
        self._process, self.url = _start(folder, host, port)

    @classmethod
    def start(cls, folder: Path, host: str = "127.0.0.1", port: int = 0) -> Self:
        """Start the page and wait until it listens. Raises Tdmr1Error if it cannot start."""
        return cls(Path(folder), host, port)

    @property
    def pid(self) -> int:
        """The process id of the child."""
        return self._process.pid

    def ensure(self) -> None:
        """Restart the page at the same URL if its process has died. Raises Tdmr1Error if it cannot start."""
        if self._process.poll() is not None:
            self.stop()
            port = int(self.url.rpartition("/#")[0].rpartition(":")[2])
            self._process, self.url = _start(self._folder, self._host, port)

    def stop(self) -> None:
        """Stop the page and wait until its process has exited."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        try:
            self._process.wait(2 * STOPPING_LIMIT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _start(folder: Path, host: str, port: int) -> tuple[subprocess.Popen[bytes], str]:
    """Start a child process; return it and its URL once it listens."""
    arguments = ["--folder", str(folder), "--host", host, "--port", str(port), "--with-parent"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / LOG).open("ab") as log:
            # A session of its own: Ctrl-C in the terminal must not stop the page while the training run still needs it.
            process = subprocess.Popen(
                [sys.executable, "-m", "tdmr1_rewards.feedback.serving", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
    except OSError as error:
        raise Tdmr1Error(
            f"cannot start the labelling page of {folder}: {error.strerror}",
            "check that the folder can be written",
            code="feedback-store",
            values={"path": str(folder), "error": error.strerror},
        ) from error
    assert process.stdout is not None
    timer = threading.Timer(STARTING_LIMIT, process.kill)
    timer.start()
    try:
        line = process.stdout.readline()
    finally:
        timer.cancel()
    try:
        started = parse_json(line)
    except ValueError:
        started = {
            "error": f"the process of the labelling page of {folder} exited before it listened",
            "hint": f"see {folder / LOG}",
            "code": "process-failed",
            "values": {"path": str(folder), "log": str(folder / LOG)},
        }
    if "url" not in started:
        process.kill()
        process.communicate()
        raise Tdmr1Error(started["error"], started["hint"], code=started["code"], values=started["values"])
    return process, started["url"]


def _token(folder: Path) -> str:
    """The token of the folder, created if it is missing. Only the owner can read the file."""
    path = folder / TOKEN
    if not path.exists():
        # mkstemp makes a file that only its owner can read, and link() makes it appear with its full content.
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=".", suffix=".tmp")
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
        with suppress(FileExistsError):
            os.link(temporary, path)
        os.unlink(temporary)
    return path.read_text().strip()


def _listen(folder: Path, host: str, port: int) -> socket.socket:
    """Listen on `port`; for 0 on the last port of the folder if it is free, and otherwise on any free port."""
    port_file = folder / PORT
    listening = None
    if port == 0:
        with suppress(OSError, ValueError, Tdmr1Error):
            listening = listen(host, int(port_file.read_text()))
    listening = listening or listen(host, port)
    port_file.write_text(f"{listening.getsockname()[1]}\n")
    return listening


def _stop_with_parent(page: Page) -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    page.stop()


def main() -> None:
    """Run the child process."""
    parser = argparse.ArgumentParser(description="Serve the labelling page of a feedback folder.")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--with-parent", action="store_true", help="end when stdin is closed")
    options = parser.parse_args()
    try:
        page = open_page(options.folder, options.host, options.port)
    except Tdmr1Error as error:
        failure = {"error": error.message, "hint": error.hint, "code": error.code, "values": error.values}
        print(json.dumps(failure, default=str), flush=True)
        sys.exit(2)
    if options.with_parent:
        threading.Thread(target=_stop_with_parent, args=(page,), daemon=True).start()
    print(json.dumps({"url": page.url}), flush=True)
    try:
        page.run()
    finally:
        page.close()


if __name__ == "__main__":
    main()
