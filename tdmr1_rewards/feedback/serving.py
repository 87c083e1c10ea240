"""The page as a process: in the foreground of `tdmr1 label`, or as the child of a training.

    python -m tdmr1_rewards.feedback.serving --folder F [--host H] [--port P] --with-parent

says {"url": …} (or {"error", "hint"}) in one line on stdout, and ends when its stdin is closed: when its parent has
died. Token and port are kept in the folder, so that a link outlives its server. `FeedbackPage` is the parent's side.
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
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tdmr1_rewards.errors import Tdmr1Error
from tdmr1_rewards.serving.addresses import listen, reachable

if TYPE_CHECKING:
    from uvicorn import Server

    from tdmr1_rewards.feedback.store import FeedbackStore

TOKEN, PORT, LOG = "token", "port", "server.log"
LOG_SIZE = 1 << 20
"""Bytes of the log; one older log is kept."""
STARTING_LIMIT = 60.0
"""Seconds that a child may take until it listens."""
STOPPING_LIMIT = 5
"""Seconds that a stopping server gives to the requests it has begun."""


@dataclass(frozen=True)
class Page:
    """A page that is about to be served; `names` says who has it open (a name may be empty)."""

    url: str
    store: FeedbackStore
    names: Callable[[], list[str]]
    _server: Server
    _socket: socket.socket

    def run(self) -> None:
        """Answer until SIGINT, SIGTERM or `stop`."""
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self._socket.close()
            self.store.close()

    def stop(self) -> None:
        """End `run`, from any thread."""
        self._server.should_exit = True


def open_page(folder: Path, host: str, port: int, tell: Callable[[str], None] | None = None) -> Page:
    """Listen for the page of a feedback folder; port 0 takes the one it last had, if that is free, or else any.

    Refusals go to `server.log` in the folder, and to `tell`. Raises Tdmr1Error where it can't listen, for a folder that
    isn't ours, and where the extra isn't installed.
    """
    try:
        import uvicorn

        from tdmr1_rewards.feedback.server import build_app
    except ModuleNotFoundError as error:
        raise Tdmr1Error(
            f"the page needs {error.name}, which is not installed", "pip install 'tdmr1[human]'"
        ) from error
    from tdmr1_rewards.feedback.store import FeedbackStore

    store = FeedbackStore(folder)
    try:
        token = _token(folder)
        listening = _listen(folder, host, port)
    except BaseException:
        store.close()
        raise
    app = build_app(store, token, host=host, tell=_log(folder / LOG, tell))
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=STOPPING_LIMIT,
    )
    url = f"http://{reachable(host)}:{listening.getsockname()[1]}/#{token}"
    return Page(url, store, app.state.people.names, uvicorn.Server(config), listening)


class FeedbackPage:
    """The page of a feedback folder in a child process, which ends with this one."""

    def __init__(self, folder: Path, host: str, port: int) -> None:
        self._folder = folder
        self._host = host
        self._process, self.url = _start(folder, host, port)

    @classmethod
    def start(cls, folder: Path, host: str = "127.0.0.1", port: int = 0) -> Self:
        """Start it and wait until it listens. Raises Tdmr1Error if it can't."""
        return cls(Path(folder), host, port)

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    def ensure(self) -> None:
        """Start it again, at the same URL, if it has died. Raises Tdmr1Error if it can't."""
        if self._process.poll() is not None:
            self.stop()
            port = int(self.url.rpartition("/#")[0].rpartition(":")[2])
            self._process, self.url = _start(self._folder, self._host, port)

    def stop(self) -> None:
        """End it and wait for its end."""
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
    """A child that listens, and its URL."""
    words = ["--folder", str(folder), "--host", host, "--port", str(port), "--with-parent"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / LOG).open("ab") as log:
            # In a session of its own it does not hear the terminal's Ctrl-C, after which the training goes on a while.
            process = subprocess.Popen(
                [sys.executable, "-m", "tdmr1_rewards.feedback.serving", *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
    except OSError as error:
        raise Tdmr1Error(f"the page of {folder} can't be started: {error.strerror}") from error
    assert process.stdout is not None
    timer = threading.Timer(STARTING_LIMIT, process.kill)
    timer.start()
    try:
        line = process.stdout.readline()
    finally:
        timer.cancel()
    try:
        said = json.loads(line)
    except ValueError:
        said = {"error": f"the page of {folder} ended before it listened", "hint": f"{folder / LOG} says more"}
    if "url" not in said:
        process.kill()
        process.communicate()
        raise Tdmr1Error(said["error"], said["hint"])
    return process, said["url"]


def _token(folder: Path) -> str:
    """The folder's token, made at first; only its owner may read the file."""
    path = folder / TOKEN
    if not path.exists():
        # A temporary file is its owner's alone, and a link is made whole or not at all: nobody else sees half of it.
        handle, building = tempfile.mkstemp(dir=folder, prefix=".", suffix=".tmp")
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
        with suppress(FileExistsError):
            os.link(building, path)
        os.unlink(building)
    return path.read_text().strip()


def _listen(folder: Path, host: str, port: int) -> socket.socket:
    """The port that is asked for; for 0 the one that the folder last had, if it is free, or else any."""
    kept = folder / PORT
    listening = None
    if port == 0:
        with suppress(OSError, ValueError, Tdmr1Error):
            listening = listen(host, int(kept.read_text()))
    listening = listening or listen(host, port)
    kept.write_text(f"{listening.getsockname()[1]}\n")
    return listening


def _log(path: Path, tell: Callable[[str], None] | None) -> Callable[[str], None]:
    handler = logging.handlers.RotatingFileHandler(path, maxBytes=LOG_SIZE, backupCount=1, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger = logging.Logger("tdmr1.feedback")
    logger.addHandler(handler)

    def both(line: str) -> None:
        logger.warning("%s", line)
        if tell is not None:
            tell(line)

    return both


def _stop_with_parent(page: Page) -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    page.stop()


def main() -> None:
    """The child's process."""
    parser = argparse.ArgumentParser(description="Serve the page of a feedback folder.")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--with-parent", action="store_true", help="end when stdin is closed")
    options = parser.parse_args()
    try:
        page = open_page(options.folder, options.host, options.port)
    except Tdmr1Error as error:
        print(json.dumps({"error": error.message, "hint": error.hint}), flush=True)
        sys.exit(2)
    if options.with_parent:
        threading.Thread(target=_stop_with_parent, args=(page,), daemon=True).start()
    print(json.dumps({"url": page.url}), flush=True)
    page.run()


if __name__ == "__main__":
    main()
