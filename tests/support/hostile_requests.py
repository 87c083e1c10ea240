"""Random and hostile requests to the reward server and the labelling page."""

from __future__ import annotations

import copy
import gzip
import json
from urllib.parse import quote_from_bytes

from support.limited_server import answer, connect
from support.reward_batches import make_batch
from tdmr1_rewards.calling.wire import encode_batch

TOKEN = "tok_en-1"
NAN, BIG = float("nan"), 10**400
HOSTILE = [
    None,
    True,
    False,
    0,
    -1,
    1.5,
    2**63,
    -(2**63) - 1,
    BIG,
    NAN,
    float("inf"),
    "",
    "\ud800",
    "\x00\x1b[2J",
    "é" * 99,
]
HOSTILE += [[], {}, [[]], [None], {"a": {"\udfff": [NAN]}}, "../../etc/passwd", "1", "iVBORw0KGgo=", "%", {"": 0}]
DEEP = b"[" * 100_000 + b"]" * 100_000
QUERIES = [b"", b"person=p", b"person=", b"person=%ff", b"person=p&limit=0", b"person=p&limit=1e9", b"person=p&limit=8"]
QUERIES += [b"person=p&limit=" + b"9" * 5000, b"person=p&person=q", b"person[]=p", b"&&==&", b"person=p&name=%ED%A0%80"]
PATHS = [
    b"/",
    b"//",
    b"/%ff",
    b"/score",
    b"/info",
    b"/health",
    b"/api/state",
    b"/api/items",
    b"/api/images/..%2f..%2fx",
]
PATHS += [b"/api/images/" + b"0" * 64, b"/api/answers", b"/api/undo", b"*", b"http://[::1/score", b"/page.js", b"/%00"]
HEADERS = [
    b"Content-Encoding: gzip",
    b"Content-Type: text/\xff",
    b"Range: bytes=9-1,,x",
    b"Origin: null",
    b"Cookie: \x01a",
]
HEADERS += [
    b"Authorization: Bearer \xff\xfe",
    b"Host: [",
    b"Expect: 100-continue",
    b"If-Range: x",
    b"Content-Length: 7",
]
HEADERS += [
    b"Transfer-Encoding: gzip",
    b"Upgrade: websocket\r\nConnection: upgrade",
    b"X: " + b"y" * 400_000,
    b"a b: c",
]


def score_request():
    return {"protocol": 1, "batch": encode_batch(make_batch("a", "b", metadata=[{"include": [{"count": 2}]}, {}]))}


def answer_request():
    return {"key": "k", "item": 1, "round": 1, "person": "p", "name": "Ada", "answer": "like"}


def places(value):
    """(container, key) of every value in a document."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(pairs):
        yield value, key
        yield from places(inner)


def hostile_body(rng, document):
    """A body with one to three changed fields, or with an error of another kind."""
    document = copy.deepcopy(document)
    for _ in range(rng.randint(1, 3)):
        container, key = rng.choice(list(places(document)))
        kind = rng.randrange(6)
        if kind == 0:
            del container[key]
        elif kind == 1 and isinstance(container[key], list):
            container[key] = container[key] * rng.choice([0, 2, 50])
        elif kind == 2 and isinstance(container[key], str):
            container[key] = "x" * 10_000_000 if rng.random() < 0.02 else container[key] * 3
        else:
            container[key] = copy.deepcopy(rng.choice(HOSTILE))
        if not list(places(document)):
            break
    body = json.dumps(document).encode()
    kind = rng.randrange(12)
    if kind == 0:
        return body[: rng.randrange(len(body) + 1)]
    if kind == 1:
        return body.replace(b'"', b'"\xed\xa0\x80', 1)
    if kind == 2:
        return body.replace(b"{", b'{"a": ' + rng.choice([DEEP, b"1e999", b"-", b"9" * 5000, b"{}"]) + b', "a": 0,', 1)
    if kind == 3:
        return body.decode().encode(rng.choice(["utf-16", "utf-32", "utf-8-sig"]))
    return body


def send(port, method, path, body, extra, host=b"127.0.0.1"):
    headers = [method + b" " + path + b" HTTP/1.1", b"Connection: close"]
    names = [header.partition(b":")[0] for header in extra]
    if b"Host" not in names:
        headers.append(b"Host: " + host)
    if b"Authorization" not in names:
        headers.append(b"Authorization: Bearer " + TOKEN.encode())
    if b"Content-Length" not in names and b"Transfer-Encoding" not in names:
        headers.append(b"Content-Length: %d" % len(body))
    data = b"\r\n".join([*headers, *extra, b"", body])
    try:
        return answer(connect(port, data))
    except (BrokenPipeError, ConnectionResetError):  # the server refused the request before it was complete
        return 0, {}


def check(status, document, sent):
    assert status == 0 or 200 <= status < 500, (status, document, sent[:300])
    if status >= 400:
        assert isinstance(document["error"], str), sent
        assert document["error"].isprintable(), sent[:300]
        assert document.keys() - {"values"} == {"error", "hint"}


def hostile_body_request(rng, server, number):
    """Method, path, body and headers of a request with a hostile body, to the server `reward` or `label`."""
    if server == "reward":
        return b"POST", b"/score", hostile_body(rng, score_request()), []
    if number % 4:
        return b"POST", b"/api/answers", hostile_body(rng, answer_request()), []
    return b"POST", b"/api/undo", hostile_body(rng, {"key": "u", "person": "p"}), []


def hostile_head_request(rng):
    """Method, path, body and headers of a request with a hostile method, path, query or headers."""
    method = rng.choice([b"GET", b"POST", b"PUT", b"OPTIONS", b"DELETE", b"get", b"X\xff"])
    path = rng.choice(PATHS) + b"?" + rng.choice([*QUERIES, quote_from_bytes(rng.randbytes(9)).encode()])
    body = rng.choice([b"", b"{}", gzip.compress(b"{}"), b"\xff\xfe", json.dumps(score_request()).encode()])
    return method, path, body, rng.sample(HEADERS, rng.choice([0, 0, 1, 2]))


def send_and_check(port, method, path, body, extra):
    """Send a request, and check that the answer is JSON with a status below 500; returns the status."""
    status, document = send(port, method, path, body, extra)
    check(status, document if status >= 400 or method == b"POST" else {}, path + b"".join(extra) + body)
    return status
