"""The tables and messages of docs/reward_protocol.md agree with the code."""

from __future__ import annotations

import json
import re

import pytest
from support.errors import raises
from support.other_server import INFO, OtherServer, running
from support.protocol_page import PAGE, message
from support.reward_batches import make_batch

from tdmr1_rewards.api import RewardSpec
from tdmr1_rewards.calling.result_checks import check_result
from tdmr1_rewards.calling.wire import MAX_PIXELS, PROTOCOL, decode_batch, decode_result, encode_batch
from tdmr1_rewards.serving import server as server_module
from tdmr1_rewards.sources import remote as remote_module
from tdmr1_rewards.sources.remote import RemoteOptions, RemoteReward
from tdmr1_rewards.sources.server_info import LONGEST_TIMEOUT, read_info

pytestmark = pytest.mark.unit


def table(first: str) -> list[list[str]]:
    """The rows of the tables whose first column has this title."""
    tables = re.findall(rf"^\| {first} \|.*\n\|[-|]+\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|\n").split("|")] for text in tables for line in text.splitlines()]


def fields(columns: int) -> dict[str, list[str]]:
    """The rows of the tables of fields with this number of columns, by field; a row may describe two fields."""
    rows = [row for row in table("field") if len(row) == columns]
    return {name: row for row in rows for name in re.findall(r"`(\w+)`", row[0])}


def client_of(server: OtherServer, **options) -> RemoteReward:
    return RemoteReward(f"{server.address}/brightness", RemoteOptions(**({"token": "t", "patience": 0} | options)))


def test_the_fields_of_the_messages_are_those_of_the_tables():
    request, batch = message("request"), encode_batch(make_batch("a"))
    assert request.keys() == {"protocol", "batch"}
    assert request["batch"].keys() == batch.keys()
    assert request["batch"]["context"].keys() == batch["context"].keys()
    answer = message("answer")
    assert answer.keys() == {"protocol", "scores", "details"}
    described = {*batch, *batch["context"], *answer} - {"protocol"}
    assert fields(3).keys() == described
    assert fields(4).keys() == message("info").keys()
    assert {part["protocol"] for part in (request, answer, message("info"))} == {PROTOCOL}


def test_the_messages_can_be_decoded():
    batch = decode_batch(message("request")["batch"], "array")
    assert batch.images.tolist() == [[[[255, 0, 0], [0, 0, 0]]]]
    result = check_result(decode_result(message("answer")), batch.image_ids)
    assert result.scores == [batch.images.mean() / 255]
    limits = read_info(message("info"), "http://h", "jpeg_size")
    assert limits == {name: message("info")[name] for name in limits}
    assert limits.keys() == fields(4).keys() - {"protocol", "name"}


def test_all_fields_of_a_request_except_the_run_folder_are_required():
    batch = message("request")["batch"]
    required = {*batch, *batch["context"]} - {"run_folder"}
    assert len(required) == 8
    for name in required:
        batch = message("request")["batch"]
        (batch if name in batch else batch["context"]).pop(name)
        with raises("server-protocol", field=name):
            decode_batch(batch, "array")
    batch = message("request")["batch"]
    del batch["context"]["run_folder"]
    assert decode_batch(batch, "array").context.run_folder is None


def test_missing_fields_of_info_have_the_effect_that_the_page_names():
    spec = RewardSpec(name="x", summary="", factory="a:b")
    with running(OtherServer(INFO)) as server:
        reward = client_of(server)
        reward.setup("cpu")
        found = reward.served_spec(spec)
        defaults = {name: row[3] for name, row in fields(4).items()}
        for name in ("batch_size", "timeout", "groupwise", "image_format"):
            assert json.loads(defaults[name]) == getattr(found, name), name
        assert reward._read_timeout() == found.timeout
    for name in [name for name, cell in defaults.items() if cell == "error"]:
        without = {key: INFO[key] for key in INFO if key != name}
        with running(OtherServer(without)) as server, raises("server-protocol"):
            client_of(server).setup("cpu")


@pytest.mark.parametrize("row", table("status"), ids=lambda row: row[0])
def test_the_client_does_with_each_status_what_the_page_says(row, monkeypatch):
    status, _, reaction, code = row
    monkeypatch.setattr(remote_module, "FIRST_PAUSE", 0.01)
    with running(OtherServer(statuses=[int(status), 200])) as server:
        reward = client_of(server, patience=5)
        if reaction == "repeats the request":
            assert reward(make_batch("a")).scores == [0.5]
        else:
            assert reaction == "fails"
            with raises(code.strip("`"), status=int(status)):
                reward(make_batch("a"))
        assert len(server.requests) == (2 if reaction == "repeats the request" else 1)
    if reaction == "repeats the request":
        with running(OtherServer(statuses=[int(status)])) as server, raises(code.strip("`"), status=int(status)):
            client_of(server)(make_batch("a"))


def test_repeated_requests_are_equal_and_have_the_headers_of_the_page():
    with running(OtherServer(statuses=[503, 200])) as server:
        client_of(server, patience=5)(make_batch("a"))
    first, second = server.requests
    assert first == second
    assert first["protocol"] == PROTOCOL
    assert first["batch"]["context"]["run_folder"] is None
    assert [headers["Authorization"] for headers in server.headers] == ["Bearer t"] * 2
    with running(OtherServer()) as server:
        client_of(server, token=None, token_variable="NO_SUCH_VARIABLE")(make_batch("a"))
    assert "Authorization" not in server.headers[0]


@pytest.mark.parametrize(
    "quoted",
    [
        f"at most {MAX_PIXELS} pixels (8192 x 8192)",
        f"at most {LONGEST_TIMEOUT:.0f}, or null",
        f"{server_module.MAX_WAITING} requests wait already",
        f'"max_body": {server_module.MAX_BODY}',
        f"after {remote_module.FIRST_PAUSE:g} s, then {2 * remote_module.FIRST_PAUSE:g} s and so on up to "
        f"{remote_module.LONGEST_PAUSE:g} s, for {RemoteOptions().patience:g} seconds",
        f"After {remote_module.READ_TIMEOUT:.0f} seconds",
        RemoteOptions().token_variable,
    ],
)
def test_the_numbers_of_the_page_are_those_of_the_code(quoted):
    assert quoted in PAGE
