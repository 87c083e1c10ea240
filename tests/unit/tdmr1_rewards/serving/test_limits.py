"""The limits of connections: slow, half-open, too many, too large and invalid ones are closed, others are served."""

import json
import os
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import pytest
import requests
from support.command_line import environment
from support.limited_server import answer, connect, serving
from support.reward_batches import FOO, make_batch

from tdmr1_rewards.api import RewardResult, RewardSpec
from tdmr1_rewards.calling.wire import encode_batch
from tdmr1_rewards.feedback import server as label_server
from tdmr1_rewards.feedback.store import FeedbackStore
from tdmr1_rewards.serving import limits
from tdmr1_rewards.serving import server as reward_server

pytestmark = pytest.mark.unit

TOKEN = "tok_en-1"
SPEC = RewardSpec(name="sizes", summary="s", factory="a:b", image_format="array", batch_size=8)
HALF = b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\nX-a: "
HEAD = b"POST /score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer tok_en-1\r\n"


def scoring(batch):
    return RewardResult([float(image.mean()) for image in batch.images])


@pytest.fixture(scope="module")
def port():
    with serving(reward_server.build_app(scoring, SPEC, TOKEN, provenance=FOO, max_body=100_000)) as port:
        yield port


@pytest.fixture
def short(monkeypatch):
    """Time limits that a test can wait for."""
    monkeypatch.setattr(limits, "TIME", dict.fromkeys(limits.TIME, 0.4))
    monkeypatch.setattr(limits, "TICK", 0.05)
    monkeypatch.setattr(limits, "RATE", 1000)


def health(port):
    began = time.monotonic()
    response = requests.get(f"http://127.0.0.1:{port}/health", timeout=10)
    assert response.json() == {"status": "ok"}
    return time.monotonic() - began


def drip(port, head, pieces, pause):
    """Send pieces slowly until the server closes the connection; returns the seconds that it took, and the answer."""
    connection, began = connect(port, head), time.monotonic()
    try:
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(pause)
    except OSError:
        pass
    return time.monotonic() - began, answer(connection)


@pytest.mark.parametrize(
    ("head", "piece", "status"),
    [(b"GET /hea", b"l", 408), (HALF, b"a", 408), (HEAD + b"Content-Length: 9999\r\n\r\n", b" ", 408)],
    ids=["in the path", "in a header", "in the body"],
)
def test_a_slow_request_is_refused_although_bytes_arrive(port, short, head, piece, status):
    seconds, found = drip(port, head, [piece] * 100, 0.05)
    assert 0.3 < seconds < 4
    assert found == (status, {"error": "the client is too slow", "hint": "send the request again"})


def test_a_slow_body_of_a_head_request_is_refused_without_a_body(short):
    async def reading(scope, receive, send):
        while scope["type"] == "http" and (await receive())["type"] != "http.disconnect":
            pass

    with serving(reading) as port:
        head = HEAD.replace(b"POST", b"HEAD") + b"Content-Length: 99\r\n\r\n"
        seconds, found = drip(port, head, [b" "] * 98, 0.05)
    assert seconds < 4
    assert found == (408, {})


def test_a_connection_without_bytes_is_closed(port, short):
    began = time.monotonic()
    assert answer(connect(port)) == (0, {})
    assert time.monotonic() - began < 4


def test_a_large_body_gets_more_time_than_a_small_one(port, short, monkeypatch):
    monkeypatch.setitem(limits.TIME, "body", 1.0)
    body = json.dumps({"protocol": 1, "batch": {}}).encode() + b" " * 3000
    pieces = [body[start : start + 100] for start in range(0, len(body), 100)]
    head = HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    seconds, (status, _) = drip(port, head, pieces, 0.08)
    assert seconds > 2 * limits.TIME["body"]
    assert status == 422


def test_the_rest_of_a_refused_body_is_not_read_for_ever(port, short):
    pieces = (b"x" * 10_000 for _ in range(1000))
    seconds, _ = drip(port, HEAD.replace(b"tok_en", b"wrong") + b"Content-Length: 10000000\r\n\r\n", pieces, 0.01)
    assert seconds < 4


def test_a_client_that_does_not_read_its_answer_is_closed(short, monkeypatch):
    monkeypatch.setattr(limits, "RATE", 10**6)

    async def large(scope, receive, send):
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for _ in range(3000):
                await send({"type": "http.response.body", "body": b"x" * 10_000, "more_body": True})

    with serving(large) as port:
        connection = connect(port, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(2)
        received = 0
        with suppress(ConnectionResetError):
            while part := connection.recv(1 << 20):
                received += len(part)
        assert received < 30_000_000


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01 a TLS hello\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 400_000, 431),
        (HEAD + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\n{}", 400),
        (HEAD + b"Transfer-Encoding: gzip\r\n\r\n{}", 400),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n", 400),
        (HEAD + b"Content-Encoding: gzip\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}", 415),
        (HEAD + b"Content-Length: 100001\r\nConnection: close\r\n\r\n" + b" " * 100_001, 413),
    ],
)
def test_invalid_http_is_refused_with_json_and_one_line_in_the_log(port, data, status, caplog):
    found, document = answer(connect(port, data))
    assert (found, document.keys() - {"values"}) == (status, {"error", "hint"})
    assert len(caplog.records) == 1
    assert f"({status})" in caplog.text


def test_a_client_that_hangs_up_in_its_body_leaves_no_traceback(port, caplog):
    connect(port, HEAD + b"Content-Length: 100\r\n\r\n{").close()
    time.sleep(0.3)
    assert health(port) < 2
    assert caplog.records == []


@pytest.mark.parametrize("kind", ["reward", "label"])
def test_200_slow_clients_do_not_stop_a_server(kind, port, tmp_path):
    with ExitStack() as stack:
        if kind == "label":
            store = FeedbackStore(tmp_path)
            stack.callback(store.close)
            port = stack.enter_context(serving(label_server.build_app(store, TOKEN, log=lambda line: None)))
        for _ in range(200):
            stack.enter_context(connect(port, HALF))
        if kind == "reward":
            assert health(port) < 2
        else:
            assert requests.get(f"http://127.0.0.1:{port}/", timeout=10).status_code == 200


def test_above_the_limit_the_oldest_waiting_connection_is_closed(port, monkeypatch):
    monkeypatch.setattr(limits, "MOST_CONNECTIONS", 20)
    slow = [connect(port, HALF) for _ in range(60)]
    assert health(port) < 2
    found = [answer(connection) for connection in slow[:30]]
    assert all(status == 503 for status, _ in found), found
    for connection in slow[30:]:
        connection.close()


def test_a_new_connection_is_refused_while_all_others_have_a_request_in_progress(port, monkeypatch):
    monkeypatch.setattr(limits, "MOST_CONNECTIONS", 5)
    busy = [connect(port, HEAD + b"Content-Length: 100\r\n\r\n{") for _ in range(5)]
    time.sleep(1)
    status, document = answer(connect(port))
    assert (status, document["error"]) == (503, "the server has too many connections")
    for connection in busy:
        connection.close()


def test_no_request_is_refused_with_64_waiting_clients(port):
    def post(number):
        batch = make_batch("a", first_id=number, group_ids=[number])
        headers = {"Authorization": f"Bearer {TOKEN}"}
        body = {"protocol": 1, "batch": encode_batch(batch)}
        return requests.post(f"http://127.0.0.1:{port}/score", json=body, headers=headers, timeout=60).status_code

    with ThreadPoolExecutor(64) as pool:
        assert set(pool.map(post, range(128))) == {200}


def test_the_limits_follow_from_the_file_descriptors_of_the_process(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (300, 4096))
    assert (limits.most(512, 2), limits.most(128, 8)) == (150, 37)
    for many in (10**6, resource.RLIM_INFINITY):
        monkeypatch.setattr(resource, "getrlimit", lambda kind, many=many: (many, many))
        assert (limits.most(512, 2), limits.most(128, 8)) == (512, 128)


def test_more_half_open_connections_than_file_descriptors(tmp_path):
    reward = tmp_path / "mine.py"
    reward.write_text("from tdmr1_rewards.api import RewardResult\ndef ones(batch):\n    return [1.0] * len(batch)\n")
    command = [
        sys.executable,
        "-m",
        "tdmr1_cli",
        "rewards",
        "serve",
        f"{reward}:ones",
        "--port",
        "0",
        "--device",
        "cpu",
    ]
    errors = tmp_path / "errors.txt"
    with errors.open("wb") as stderr:
        server = subprocess.Popen(
            ["bash", "-c", 'ulimit -n 100; exec "$@"', "bash", *command],
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environment(TDMR1_REWARD_TOKEN=TOKEN),
            text=True,
        )
    try:
        port = int(server.stdout.readline().strip().rpartition(":")[2].partition("/")[0])
        with ExitStack() as stack:
            for _ in range(250):
                stack.enter_context(connect(port, HALF))
            assert health(port) < 5
            assert len(os.listdir(f"/proc/{server.pid}/fd")) < 100
        assert health(port) < 5
    finally:
        server.terminate()
        server.wait(30)
    text = errors.read_text()
    assert "Traceback" not in text
    assert "Too many open files" not in text
    assert len(text.splitlines()) < 2 * 60
