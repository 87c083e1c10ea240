"""Runs an app behind the limits of both servers, in a thread, and talks to it over raw sockets."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tdmr1_rewards.serving import limits
from tdmr1_rewards.serving.addresses import listen


@contextmanager
def serving(app) -> Iterator[int]:
    """Serve the app during the block; yields the port."""
    listening = listen("127.0.0.1", 0)
    server = limits.server(app, 1)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    limit = time.monotonic() + 20
    while not server.started and time.monotonic() < limit:
        time.sleep(0.01)
    try:
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def connect(port: int, data: bytes = b"") -> socket.socket:
    """A connection that has sent `data`."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=20)
    connection.sendall(data)
    return connection


def answer(connection: socket.socket) -> tuple[int, dict]:
    """Read until the server closes the connection: status and JSON document ({} without one), or (0, {})."""
    received = b""
    try:
        while part := connection.recv(65536):
            received += part
    except ConnectionResetError:
        pass
    finally:
        connection.close()
    head, _, body = received.partition(b"\r\n\r\n")
    if head.startswith(b"HTTP/1.1 100"):  # the server has asked for the body, and its answer follows
        head, _, body = body.partition(b"\r\n\r\n")
    is_json = body and b"content-type: application/json" in head.lower()
    return (int(head.split()[1]) if head else 0, json.loads(body) if is_json else {})
