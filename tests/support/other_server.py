"""A reward server that does not use tdmr1's code, with answers that a test selects."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

INFO = {"protocol": 1, "name": "brightness"}
ANSWER = {"protocol": 1, "scores": [0.5]}


class OtherServer:
    """Answers GET /info with `info` and POST /score with `answer`: JSON data, or bytes that are sent unchanged.

    `transfer` is "length", "close" (HTTP/1.0 without a length), "chunked" or "gzip". `statuses` are those of the first
    answers to POST /score; later ones have the last status. `requests` has the parsed body of each POST.
    """

    def __init__(self, info: Any = INFO, answer: Any = ANSWER, transfer: str = "length", statuses=(200,)) -> None:
        self.info, self.answer, self.transfer, self.statuses = info, answer, transfer, list(statuses)
        self.requests: list[Any] = []
        self.headers: list[Mapping[str, str]] = []
        self.address = ""

    def next_status(self) -> int:
        """The status of the next answer to POST /score."""
        return self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]


@contextmanager
def running(server: OtherServer) -> Iterator[OtherServer]:
    """Run the server on a free port of 127.0.0.1, and set its `address`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0" if server.transfer == "close" else "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self):
            self._respond(200, server.info)

        def do_POST(self):
            server.headers.append(dict(self.headers))
            server.requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self._respond(server.next_status(), server.answer)

        def _respond(self, status, document):
            body = document if isinstance(document, bytes) else json.dumps(document).encode()
            self.send_response(status)
            if server.transfer == "gzip":
                body = gzip.compress(body)
                self.send_header("Content-Encoding", "gzip")
            if server.transfer == "chunked":
                self.send_header("Transfer-Encoding", "chunked")
                middle = len(body) // 2
                body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:middle], body[middle:], b""))
            elif server.transfer != "close":
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        server.address = f"http://127.0.0.1:{http.server_address[1]}"
        try:
            yield server
        finally:
            http.shutdown()
            thread.join(20)
