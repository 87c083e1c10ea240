"""Servers that do not use tdmr1's code: every answer either works or is one clear error."""

import socket
import threading
from contextlib import contextmanager

import numpy as np
import pytest
from support.errors import raises
from support.other_server import ANSWER, INFO, OtherServer, running

from tdmr1_rewards.registry import RewardRegistry
from tdmr1_rewards.scoring.single_reward import ImageToScore, SingleReward
from tdmr1_rewards.sources.source import create_reward, find_reward

pytestmark = pytest.mark.unit

IMAGE = ImageToScore(np.zeros((4, 5, 3), np.uint8), "a prompt", {})


def score_on(address, images=1, patience=0):
    """Score images on a server, as `tdmr1 rewards try` does: the results, and the spec with the server's limits."""
    found = find_reward(RewardRegistry([]), f"remote:{address}/brightness")
    reward = create_reward(found, {"patience": patience, "token": "a-token"})
    with SingleReward(found.spec, reward, found.provenance) as single:
        results = single([IMAGE] * images)
        return results, single._runner.specs()["brightness"], reward


def check_refused(server, code, *quoted, **values):
    """Check that scoring fails with one sentence and a hint that say what is wrong."""
    with running(server), raises(code, reward="brightness", **values) as caught:
        score_on(server.address)
    message = caught.value.message
    assert "\n" not in message
    assert "Error" not in message
    assert caught.value.hint
    for text in quoted:
        assert text in message


@pytest.mark.parametrize("transfer", ["length", "close", "chunked", "gzip"])
def test_every_way_to_send_an_answer_works(transfer):
    with running(OtherServer(answer={"protocol": 1, "scores": [0.5, None]}, transfer=transfer)) as server:
        results, _, _ = score_on(server.address, images=2)
    assert [result.score for result in results] == [0.5, None]


def test_an_info_without_optional_fields_gives_the_defaults():
    with running(OtherServer()) as server:
        results, spec, reward = score_on(server.address)
    assert (spec.batch_size, spec.groupwise, spec.timeout, spec.image_format) == (32, False, 300.0, "pil")
    assert reward._max_body > 1 << 60
    assert (results[0].score, results[0].details) == (0.5, {})


@pytest.mark.parametrize(
    ("info", "limits"),
    [
        ({"batch_size": 8.0, "timeout": 20}, (8, False, 20)),
        ({"batch_size": 8, "timeout": None, "groupwise": True}, (8, True, None)),
        ({"batch_size": None, "groupwise": None, "image_format": None, "max_body": None}, (32, False, 300.0)),
        ({"protocol": 1.0, "max_body": 1e6, "colour": {"red": [1]}, "summary": 5}, (32, False, 300.0)),
    ],
)
def test_limits_as_other_languages_write_them(info, limits):
    with running(OtherServer(INFO | info)) as server:
        _, spec, _ = score_on(server.address)
    assert (spec.batch_size, spec.groupwise, spec.timeout) == limits


@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [
        ("name", None, "is missing"),
        ("name", 3, "is 3"),
        ("name", "a/b", "is 'a/b'"),
        ("name", "red\x1b[31m", r"is 'red\x1b[31m'"),
        ("batch_size", 8.5, "is 8.5"),
        ("batch_size", 0, "is 0"),
        ("batch_size", True, "is True"),
        ("batch_size", "8", "is '8'"),
        ("groupwise", "no", "is 'no'"),
        ("image_format", "tensor", "is 'tensor'"),
        ("image_format", [], "is []"),
        ("timeout", 0, "is 0"),
        ("timeout", 1e300, "is 1e+300"),
        ("timeout", "none", "is 'none'"),
        ("max_body", "many", "is 'many'"),
        ("max_body", -1, "is -1"),
    ],
)
def test_an_invalid_field_of_info_is_named_with_its_valid_values(field, value, shown):
    server = OtherServer(INFO | {field: value})
    check_refused(server, "server-protocol", f"GET /info, {field} {shown}, but must be ", field=field, found=value)


@pytest.mark.parametrize("value", [b"NaN", b"Infinity"])
def test_numbers_that_are_not_json_are_refused_as_limits(value):
    info = b'{"protocol": 1, "name": "brightness", "timeout": ' + value + b"}"
    check_refused(OtherServer(info), "server-protocol", "timeout is ", field="timeout")


@pytest.mark.parametrize("version", [None, 2, "1", True, 1.5])
def test_another_protocol_version_is_refused_in_both_answers(version):
    values = {"found": version, "expected": 1}
    shown = "does not report its protocol version" if version is None else f"has protocol version {version!r}"
    check_refused(OtherServer(INFO | {"protocol": version}), "server-protocol", shown, **values)
    check_refused(OtherServer(answer=ANSWER | {"protocol": version}), "server-protocol", shown, **values)


@pytest.mark.parametrize(
    ("answer", "score", "details"),
    [
        (b'{"protocol": 1, "scores": [3]}', 3.0, {}),
        (b'{"protocol": 1.0, "scores": [1e3], "details": null, "more": [1]}', 1000.0, {}),
        (b'{"protocol": 1, "scores": [null], "details": [null]}', None, {}),
        (b'\xef\xbb\xbf{"protocol": 1, "scores": [1], "details": [{"a": "\xc3\xa4"}]}', 1.0, {"a": "ä"}),
        (rb'{"protocol": 1, "scores": [1], "details": [{"a": "\ud83d \ud83d\ude00"}]}', 1.0, {"a": "? 😀"}),
    ],
)
def test_scores_as_other_languages_write_them(answer, score, details):
    with running(OtherServer(answer=answer)) as server:
        results, _, _ = score_on(server.address)
    assert type(results[0].score) is type(score)
    assert (results[0].score, results[0].details) == (score, details)


@pytest.mark.parametrize(
    ("answer", "code", "quoted"),
    [
        (b'{"protocol": 1, "scores": [1, 2]}', "reward-result", "returned 2 scores for 1 images"),
        (b'{"protocol": 1, "scores": []}', "reward-result", "returned 0 scores for 1 images"),
        (b'{"protocol": 1, "scores": [NaN]}', "reward-result", "returned nan"),
        (b'{"protocol": 1, "scores": [1e400]}', "reward-result", "returned inf"),
        (b'{"protocol": 1, "scores": ["1"]}', "reward-result", "returned '1', a str"),
        (b'{"protocol": 1, "scores": {"0": 1}}', "server-protocol", "scores is a dict"),
        (b'{"protocol": 1, "scores": [1], "details": 5}', "server-protocol", "details is a int"),
        (b'{"protocol": 1, "scores": [1], "details": {"a": 1}}', "server-protocol", "details is a dict"),
        (b'{"protocol": 1, "scores": [1], "details": [{}, {}]}', "reward-result", "2 details for 1 images"),
        (b'{"protocol": 1, "scores": [1], "details": [5]}', "reward-result", "as details of image 0"),
        (b'{"protocol": 1, "scores": [' + b"1" * 5000 + b"]}", "server-protocol", "JSON object"),
        (b"[" * 100_000, "server-protocol", "JSON object"),
        (b"\xff\xfe", "server-protocol", "JSON object"),
    ],
)
def test_an_invalid_answer_is_one_clear_error(answer, code, quoted):
    check_refused(OtherServer(answer=answer), code, quoted)


@pytest.mark.parametrize(
    ("answer", "quoted"),
    [
        ({"error": "two\nlines", "hint": ["a", "list"]}, "refuses the request: two lines"),
        ({"error": "\ud800 \x1b[31mred", "hint": "\x1b[0m"}, r"refuses the request: ? \x1b[31mred"),
        ({"error": {"message": "nested"}, "hint": 5}, "nested"),
        ({"error": "x" * 100_000}, "xxx…"),
        ([], "422 Unprocessable"),
    ],
)
def test_error_answers_of_any_form_are_shown_in_one_short_line(answer, quoted):
    server = OtherServer(answer=answer, statuses=[422])
    check_refused(server, "server-refused", quoted, status=422)
    with running(server), raises("server-refused") as caught:
        score_on(server.address)
    assert len(caught.value.message) < 1500
    assert caught.value.hint.isprintable()


def test_a_redirect_without_an_address_is_an_error():
    check_refused(OtherServer(statuses=[302]), "server-refused", "has moved to another address", status=302)


@contextmanager
def sending(data):
    """A server that sends these bytes to each connection and closes it."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(1 << 16)
                    connection.sendall(data)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)


HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("data", "code", "quoted"),
    [
        (b"", "server-unreachable", "closed the connection"),
        (b"SSH-2.0-OpenSSH_9\r\n", "server-unreachable", "does not use HTTP"),
        (HEAD + b"Content-Length: 300\r\n\r\n{}", "server-unreachable", "before its answer was complete"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{", "server-unreachable", "before its answer was complete"),
        (HEAD + b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc", "server-protocol", "Content-Encoding"),
        (b"HTTP/1.1 500 \r\nContent-Length: 0\r\n\r\n", "reward-failed", "failed: 500"),
    ],
)
def test_an_answer_that_is_not_complete_http_is_one_clear_error(data, code, quoted):
    with sending(data) as address, raises(code, server=address) as caught:
        score_on(address)
    assert quoted in caught.value.message
    assert "\n" not in caught.value.message
    assert "Error" not in caught.value.message
