"""A reward server in plain Python and Pillow: `TDMR1_REWARD_TOKEN=… python server.py PORT`.

The score of an image is its mean brightness, 0 to 1.
"""

import base64
import hmac
import io
import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image, ImageStat

TOKEN = os.environ["TDMR1_REWARD_TOKEN"]
MAX_BODY = 64 * 1024 * 1024
INFO = {"protocol": 1, "name": "brightness", "batch_size": 32, "max_body": MAX_BODY, "score_range": "0 to 1"}


def brightness(text: str) -> float:
    """The mean of all channels of a PNG image in base64, 0 to 1."""
    image = Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=["PNG"])
    return sum(ImageStat.Stat(image.convert("RGB")).mean) / 3 / 255


def score(body: bytes) -> tuple[int, dict[str, Any]]:
    """The status and the answer to a request of POST /score."""
    try:
        request = json.loads(body)
    except ValueError:
        return 400, {"error": "the request is not JSON"}
    if not isinstance(request, dict) or request.get("protocol") != 1:
        return 400, {"error": "this server needs protocol version 1"}
    try:
        scores = [brightness(image) for image in request["batch"]["images"]]
    except Exception as error:
        return 422, {"error": f"the batch is invalid: {error!r}"}
    return 200, {"protocol": 1, "scores": scores}


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of the protocol. Each connection has its own thread."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def respond(self) -> None:
        """Answer a request after its body is read, so that the connection can be used again."""
        length = int(self.headers.get("Content-Length", 0))
        excess = length - MAX_BODY
        while excess > 0 and (part := self.rfile.read(min(excess, MAX_BODY))):
            excess -= len(part)
        body = self.rfile.read(min(length, MAX_BODY))
        authorization = self.headers.get("Authorization", "").encode()
        route = f"{self.command} {self.path}"
        if length > MAX_BODY:
            answer = 413, {"error": f"the request is larger than {MAX_BODY} bytes"}
        elif route == "GET /health":
            answer = 200, {"status": "ok"}
        elif route not in ("GET /info", "POST /score"):
            answer = 404, {"error": f"there is no {route}"}
        elif not hmac.compare_digest(authorization, f"Bearer {TOKEN}".encode()):
            answer = 401, {"error": "the request has no valid token"}
        else:
            answer = (200, INFO) if route == "GET /info" else score(body)
        document = json.dumps(answer[1]).encode()
        self.send_response(answer[0])
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(document)))
        self.end_headers()
        self.wfile.write(document)

    do_GET = do_POST = respond


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
    print(f"serving brightness at http://127.0.0.1:{server.server_port}/brightness", flush=True)
    server.serve_forever()
