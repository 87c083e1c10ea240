"""The reward server and its client, over real sockets."""

import asyncio
import base64
import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import requests
from support.errors import raises
from support.event_loops import run_async
from support.faulty_rewards import Faulty
from support.reward_batches import FOO, active, make_batch
from support.reward_server import serving

from tdmr1_rewards.api import RewardResult, RewardSpec
from tdmr1_rewards.calling.wire import PROTOCOL, encode_batch
from tdmr1_rewards.scoring.runner import RewardRunner
from tdmr1_rewards.serving.server import RequestBatcher, build_app
from tdmr1_rewards.sources import remote as remote_module
from tdmr1_rewards.sources import server_info
from tdmr1_rewards.sources.remote import RemoteOptions, RemoteReward

pytestmark = pytest.mark.unit

TOKEN = "tok_en-1"
SPEC = RewardSpec(
    name="faulty", summary="s", factory="a:b", default_prompts="count", image_format="array", batch_size=8
)


@pytest.fixture(scope="module")
def server():
    with serving(build_app(Faulty(), SPEC, TOKEN, provenance=FOO, device="cuda:5", max_body=100_000)) as address:
        yield address


@pytest.fixture(autouse=True)
def no_token(monkeypatch):
    monkeypatch.delenv("TDMR1_REWARD_TOKEN", raising=False)


def post(address, body, token=TOKEN, **headers):
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return requests.post(f"{address}/score", data=data, headers=headers, timeout=30)


def request_for(*prompts, **settings):
    return {"protocol": PROTOCOL, "batch": encode_batch(make_batch(*prompts, **settings))}


def client(address, **options):
    return RemoteReward(f"{address}/faulty", RemoteOptions(**({"token": TOKEN, "patience": 0} | options)))


def failure_of(call, code, **values):
    with raises(code, **values) as caught:
        call()
    assert "\n" not in caught.value.message
    return caught.value


def test_health_needs_no_token_and_reveals_nothing(server):
    response = requests.get(f"{server}/health", timeout=30)
    assert (response.status_code, response.json()) == (200, {"status": "ok"})


def test_info_has_what_a_client_needs(server):
    response = requests.get(f"{server}/info", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=30)
    info = response.json()
    assert (info["protocol"], info["name"], info["batch_size"], info["max_body"]) == (PROTOCOL, "faulty", 8, 100_000)


@pytest.mark.parametrize("token", [None, "", "wrong", TOKEN[:-1], TOKEN + "x"])
def test_without_the_token_every_request_is_refused(server, token, caplog):
    for response in (
        post(server, request_for("a"), token),
        requests.get(f"{server}/info", headers={"Authorization": f"Bearer {token}"}, timeout=30),
    ):
        assert response.status_code == 401
        assert "token" in response.json()["error"]
        assert "scores" not in response.text
    refused = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert [line.partition(" (")[0] for line in refused] == [
        f"refused a {verb} from 127.0.0.1" for verb in ("POST", "GET")
    ]
    assert all("401" in line and "token" in line and TOKEN not in line for line in refused)


def test_only_the_three_documented_paths_exist(server):
    for path in ("/", "/docs", "/openapi.json", "/score/x"):
        response = requests.get(f"{server}{path}", timeout=30)
        assert response.status_code == 404
        assert "POST /score" in response.json()["hint"]
    assert requests.get(f"{server}/score", timeout=30).status_code == 405


def test_scores_nones_and_details_are_returned(server):
    answer = post(server, request_for("a", "b")).json()
    assert answer == {"protocol": PROTOCOL, "scores": [0.0, 1.0], "details": [{}, {}]}
    answer = post(server, request_for("details")).json()
    assert answer["scores"] == [None]
    assert answer["details"] == [{"boxes": [[1.0, 1.0]], "device": "cuda:5"}]


@pytest.mark.parametrize(
    ("body", "status", "quoted"),
    [
        (b"", 400, "is not JSON"),
        (b"\xff\xfe", 400, "is not JSON"),
        (b"[" * 50_000, 400, "more than 32 lists and objects in each other"),
        ([1], 400, "is a JSON list, not an object"),
        ({"protocol": 2, "batch": {}}, 400, "protocol version 2; this server needs version 1"),
        ({"protocol": 1}, 422, "the batch is missing"),
        ({"protocol": 1, "batch": request_for()["batch"]}, 422, "the request has no images"),
        (request_for("a")["batch"] | {"protocol": 1, "batch": {"images": []}}, 422, "context is missing"),
        ({"protocol": 1, "batch": request_for("a")["batch"] | {"images": ["gASVAA=="]}}, 422, "images[0] is not a PNG"),
        (b"x" * 100_001, 413, "larger than 100000 bytes"),
    ],
)
def test_an_invalid_request_is_answered_with_a_sentence(server, body, status, quoted, caplog):
    response = post(server, body)
    assert response.status_code == status
    assert quoted in response.json()["error"]
    assert f"refused a POST from 127.0.0.1 ({status}): " in caplog.text


def test_the_size_of_a_body_without_a_content_length_is_checked(server):
    chunks = (b"x" * 60_000 for _ in range(3))
    headers = {"Authorization": f"Bearer {TOKEN}"}
    response = requests.post(f"{server}/score", data=chunks, headers=headers, timeout=30)
    assert response.status_code == 413


def test_a_failure_of_the_reward_is_answered_with_500_and_its_message(server):
    response = post(server, request_for("raise"))
    assert response.status_code == 500
    message, values = response.json()["error"], response.json()["values"]
    assert message.startswith("reward 'faulty' (from foo-dist 1.2) raised ValueError: no such word (")
    assert message.endswith(f"({values['file']}:{values['line']}, in do_raise)")
    assert Path(values["file"]).name == "faulty_rewards.py"


def test_the_server_does_not_write_to_the_run_folder_of_a_client(server, tmp_path):
    assert post(server, request_for("raise", run_folder=tmp_path)).status_code == 500
    assert list(tmp_path.iterdir()) == []


def test_metadata_selects_the_rewards_on_the_server_too(server):
    batch = make_batch("a", "b", metadata=[{"rewards": ["faulty"]}, {"rewards": ["faulty", "other"]}])
    answer = post(server, {"protocol": 1, "batch": encode_batch(batch)}).json()
    assert answer["scores"] == [0.0, 1.0]


def score_during_a_call(reward, *batches):
    """The results or errors of the batches, from a batcher that gets all others while the first one is scored."""
    begun, release = threading.Event(), threading.Event()

    def slow(batch):
        begun.set()
        release.wait(20)
        return reward(batch)

    async def score():
        batcher = RequestBatcher(slow, SPEC, FOO, "cpu")
        requests = [asyncio.create_task(batcher.score(batches[0]))]
        assert await asyncio.to_thread(begun.wait, 10)
        requests += [asyncio.create_task(batcher.score(batch)) for batch in batches[1:]]
        await asyncio.sleep(0)
        release.set()
        results = await asyncio.gather(*requests, return_exceptions=True)
        await batcher.close()
        return results

    return run_async(score())


def test_waiting_requests_share_a_call_and_get_their_own_scores():
    calls = []

    def reward(batch):
        calls.append(list(batch.prompts))
        return RewardResult([float(prompt) for prompt in batch.prompts], [{"n": len(batch)}] * len(batch))

    results = score_during_a_call(
        reward,
        make_batch("0", first_id=0),
        make_batch("1", "2", first_id=10, group_ids=[1, 1]),
        make_batch("3", first_id=10, group_ids=[2]),  # the same image id as the request before
        make_batch("4", first_id=20, group_ids=[1]),  # the same group id
        make_batch("5", first_id=30, group_ids=[3], iteration=1),  # another context
        make_batch("6", first_id=40, group_ids=[4]),
        make_batch(*"7" * 6, first_id=50, group_ids=[5] * 6),  # too many
    )
    assert [result.scores for result in results] == [[0.0], [1.0, 2.0], [3.0], [4.0], [5.0], [6.0], [7.0] * 6]
    assert calls == [["0"], ["1", "2", "6"], ["3", "4", *"777777"], ["5"]]
    assert results[5].details == [{"n": 3}]


def test_a_failing_request_of_a_shared_call_does_not_affect_the_others():
    def reward(batch):
        if "bad" in batch.prompts:
            raise OSError("spoilt")
        return RewardResult([1.0] * len(batch))

    good, bad = make_batch("a", first_id=10, group_ids=[1]), make_batch("bad", first_id=20, group_ids=[2])
    _, result, error = score_during_a_call(reward, make_batch("0", first_id=0), good, bad)
    assert result.scores == [1.0]
    assert (error.code, error.values["error"]) == ("reward-failed", "OSError: spoilt")


def test_a_closing_batcher_refuses_waiting_and_new_requests_and_finishes_the_call(monkeypatch):
    begun, release = threading.Event(), threading.Event()

    def slow(batch):
        begun.set()
        release.wait(20)
        return RewardResult([1.0] * len(batch))

    async def score():
        batcher = RequestBatcher(slow, SPEC, FOO, "cpu")
        first = asyncio.create_task(batcher.score(make_batch("a")))
        assert await asyncio.to_thread(begun.wait, 10)
        monkeypatch.setattr("tdmr1_rewards.serving.server.MAX_WAITING", 1)
        second, third = (asyncio.create_task(batcher.score(make_batch("b"))) for _ in range(2))
        closing = asyncio.create_task(batcher.close())
        await asyncio.sleep(0)
        fourth = asyncio.create_task(batcher.score(make_batch("c")))
        await asyncio.wait([second, third, fourth])
        release.set()
        await closing
        return await asyncio.gather(first, second, third, fourth, return_exceptions=True)

    first, *refused = run_async(score())
    assert first.scores == [1.0]
    assert [(each.status, each.error) for each in refused] == [
        (503, "the server is stopping"),
        (503, "too many requests are waiting"),
        (503, "too many requests are waiting"),
    ]


def test_concurrent_requests_over_http(server):
    answers = {}

    def post_batch(first):
        batch = make_batch("a", "b", "c", first_id=first, group_ids=[first] * 3)
        answers[first] = post(server, {"protocol": 1, "batch": encode_batch(batch)}).json()["scores"]

    threads = [threading.Thread(target=post_batch, args=(10 * n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == {10 * n: [0.0, 1.0, 2.0] for n in range(6)}


def test_a_full_queue_is_answered_with_503(monkeypatch):
    monkeypatch.setattr("tdmr1_rewards.serving.server.MAX_WAITING", 0)
    with serving(build_app(Faulty(), SPEC, TOKEN)) as address:
        assert post(address, request_for("a")).status_code == 503
        reward = client(address)
        failure_of(lambda: reward(make_batch("a")), "server-unreachable", server=address, status=503)


@pytest.mark.parametrize("token", ["", " ", "a b", "tök", "a\nb"])
def test_a_token_that_no_header_can_carry_is_rejected(token):
    with raises("token-invalid") as caught:
        build_app(Faulty(), SPEC, token)
    assert len(token) < 3 or token not in caught.value.message
    if token:
        with raises("token-invalid"):
            RemoteReward("http://h/a", RemoteOptions(token=token))


def test_the_client_works_in_a_runner(server, monkeypatch):
    monkeypatch.setenv("TDMR1_REWARD_TOKEN", TOKEN)
    reward = RemoteReward(f"{server}/faulty", RemoteOptions(patience=0))
    with RewardRunner([active(reward, "far")], "weighted_sum", 1) as runner:
        scored = runner.score(make_batch("a", "☃", "c"))
        assert scored.total == [0.0, 1.0, 2.0]
        values = {"reward": "far", "server": server, "status": 500}
        error = failure_of(lambda: runner.score(make_batch("nan")), "reward-failed", **values)
    assert error.message.startswith("reward 'far' (from foo-dist 1.2) failed: ")
    assert "reward 'faulty' (from foo-dist 1.2) returned nan, a float, for image 100" in error.message
    assert "finite number" in error.hint


def test_the_error_of_a_missing_or_wrong_token(server, monkeypatch):
    values = {"server": server, "status": 401}
    wrong = failure_of(lambda: client(server, token="wrong").setup("cpu"), "token-invalid", **values)
    without = client(server, token=None, token_variable="MINE")
    missing = failure_of(lambda: without.setup("cpu"), "token-invalid", **values)
    assert wrong.message != missing.message
    assert "set MINE to the token" in missing.hint
    assert TOKEN not in repr(RemoteOptions(token=TOKEN))


def test_another_reward_or_protocol_version_is_rejected(server, monkeypatch):
    other = RemoteReward(f"{server}/other", RemoteOptions(token=TOKEN, patience=0))
    failure_of(lambda: other.setup("cpu"), "reward-unknown", server=server, reward="other", found="faulty")
    for module in (remote_module, server_info):
        monkeypatch.setattr(module, "PROTOCOL", 7)
    failure_of(lambda: client(server).setup("cpu"), "server-protocol", server=server, found=1, expected=7)
    refusal = failure_of(lambda: client(server)(make_batch("a")), "server-refused", server=server, status=400)
    assert "version 7" in refusal.message


def test_a_request_that_is_too_large_is_not_sent(server):
    reward = client(server)
    reward.setup("cpu")
    noise = np.random.default_rng(0).integers(0, 256, (1, 200, 200, 3), np.uint8)
    batch = make_batch("a")
    object.__setattr__(batch, "images", noise)
    failure_of(lambda: reward(batch), "server-refused", limit=100_000)


def test_an_unavailable_server_is_an_error_after_the_patience():
    reward = client("http://127.0.0.1:9", patience=0.6)
    began = time.monotonic()
    error = failure_of(lambda: reward.setup("cpu"), "server-unreachable", server="http://127.0.0.1:9")
    assert 0.2 < time.monotonic() - began < 20
    assert "tdmr1 rewards serve" in error.hint


def test_the_client_waits_for_a_server_that_is_restarted():
    with serving(build_app(Faulty(), SPEC, TOKEN)) as address:
        reward = client(address, patience=30)
        reward.setup("cpu")
        assert reward(make_batch("a")).scores == [0.0]
    answer = []
    thread = threading.Thread(target=lambda: answer.append(reward(make_batch("a", "b")).scores))
    thread.start()
    time.sleep(0.4)
    assert answer == []
    with serving(build_app(Faulty(), SPEC, TOKEN), int(address.rpartition(":")[2])):
        thread.join(40)
    assert answer == [[0.0, 1.0]]


def test_several_servers_are_used_in_rotation_and_replace_each_other():
    seen = []

    def recording(name):
        def reward(batch):
            seen.append(name)
            return RewardResult([1.0] * len(batch))

        return reward

    with serving(build_app(recording("a"), SPEC, TOKEN)) as first:
        with serving(build_app(recording("b"), SPEC, TOKEN)) as second:
            reward = RemoteReward(f"{first}/faulty, {second}/faulty", RemoteOptions(token=TOKEN, patience=0))
            reward.setup("cpu")
            for _ in range(4):
                reward(make_batch("x"))
            assert sorted(seen) == ["a", "a", "b", "b"]
            assert seen[0] != seen[1]
        for _ in range(3):
            assert reward(make_batch("x")).scores == [1.0]
    reward.close()


def test_a_request_with_a_slow_answer_is_not_repeated(server):
    slow = client(server, read_timeout=0.3, patience=30)
    began = time.monotonic()
    failure_of(lambda: slow(make_batch("hang 1")), "server-unreachable", server=server, seconds=0.3)
    assert time.monotonic() - began < 20


class Pairwise:
    """The share of the others of its group that an image beats."""

    def __init__(self):
        self.calls = []

    def __call__(self, batch):
        light = batch.images.mean((1, 2, 3))
        self.calls.append(len(batch))
        scores = []
        for i, group in enumerate(batch.group_ids):
            others = [j for j, other in enumerate(batch.group_ids) if other == group and j != i]
            scores.append(sum(light[i] > light[j] for j in others) / len(others) if others else None)
        return RewardResult(scores)


PAIRWISE = {"name": "faulty", "groupwise": True, "batch_size": 64, "timeout": 77.0}


@pytest.mark.parametrize("size", [3, 12, 40, 70])
def test_local_and_remote_scores_of_whole_groups_are_equal(size):
    groups = [number % 4 for number in range(4 * size)]
    batch = make_batch(*["a"] * len(groups), group_ids=groups)
    spec = RewardSpec(summary="", factory="a:b", image_format="array", **PAIRWISE)
    with RewardRunner([active(Pairwise(), spec=PAIRWISE)], "weighted_sum", 1) as runner:
        local = runner.score(batch).per_reward["x"]
    with (
        serving(build_app(Pairwise(), spec, TOKEN)) as address,
        RewardRunner([active(client(address))], "weighted_sum", 1) as runner,
    ):
        assert runner.score(batch).per_reward["x"] == local


def test_a_client_takes_the_limits_of_the_server_and_settings_win():
    spec = RewardSpec(summary="", factory="a:b", image_format="array", **PAIRWISE)
    pairwise = Pairwise()
    with serving(build_app(pairwise, spec, TOKEN)) as address:
        for settings, size, seconds in (({}, 3, 77.0), ({"batch_size": 1, "timeout": 5.0}, 1, 5.0)):
            reward = client(address)
            entry = active(reward, spec={"image_format": "pil"}, **settings)
            with RewardRunner([entry], "weighted_sum", 1) as runner:
                runner.set_up()
                found = runner.specs()["x"]
                fields = (found.groupwise, found.batch_size, found.timeout, found.image_format)
                assert fields == (True, 64, 77.0, "array")
                pairwise.calls.clear()
                runner.score(make_batch("a", "b", "c", group_ids=[0, 1, 2]))
                assert pairwise.calls == [size] * (3 // size)
                (worker,) = runner._supervisors.values()
                assert worker.entry.seconds == seconds


@pytest.mark.parametrize(("served", "field"), [({"batch_size": "many"}, "batch_size"), ({"groupwise": 1}, "groupwise")])
def test_limits_of_another_type_are_refused(served, field):
    info = {"protocol": PROTOCOL, "name": "faulty", **served}
    with serving(answering(200, json.dumps(info).encode())) as address:
        failure_of(lambda: client(address).setup("cpu"), "server-protocol", server=address, field=field)


def test_servers_that_differ_in_whole_groups_are_refused_and_other_limits_are_the_smallest():
    own = RewardSpec(name="x", summary="", factory="a:b")

    def spec_of(first, second):
        bodies = [{"protocol": PROTOCOL, "name": "faulty", **served} for served in (first, second)]
        with (
            serving(answering(200, json.dumps(bodies[0]).encode())) as one,
            serving(answering(200, json.dumps(bodies[1]).encode())) as two,
        ):
            reward = RemoteReward(f"{one}/faulty,{two}/faulty", RemoteOptions(token=TOKEN, patience=0))
            reward.setup("cpu")
            return reward.served_spec(own)

    found = spec_of({"batch_size": 16, "timeout": None}, {"batch_size": 8, "timeout": 20})
    assert (found.batch_size, found.timeout, found.groupwise) == (8, 20, False)
    assert vars(spec_of({}, {})) == vars(own)
    with raises("reward-spec", reward="faulty", field="groupwise"):
        spec_of({"groupwise": True}, {"groupwise": False})


def answering(status, body, **headers):
    """An app that sends the same answer to every request."""

    async def app(scope, receive, send):
        if scope["type"] != "http":
            return
        while (await receive()).get("more_body"):
            pass
        listed = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": listed})
        await send({"type": "http.response.body", "body": body})

    return app


@pytest.mark.parametrize(
    ("status", "body", "code", "quoted"),
    [
        (200, b"<html>", "server-protocol", "JSON object"),
        (200, b"[]", "server-protocol", "JSON object"),
        (404, b"nothing", "server-protocol", "404"),
        (302, b"", "server-refused", "http://there/"),
        (400, b"", "server-refused", "400 Bad Request"),
        (500, b"oops", "reward-failed", "500 Internal Server Error"),
        (503, b"", "server-unreachable", "503 Service Unavailable"),
        (200, b'{"protocol": 1}', "server-protocol", "scores is missing"),
    ],
)
def test_answers_of_other_servers_are_reported(status, body, code, quoted):
    with serving(answering(status, body, location="http://there/")) as address:
        assert quoted in failure_of(lambda: client(address)(make_batch("a")), code).message


@pytest.mark.parametrize(
    "url", ["", "host:80/x", "ftp://host/x", "http://host", "http://host/?x", "http://a/x,http://b"]
)
def test_a_url_without_a_reward_is_rejected(url):
    with raises("reward-source"):
        RemoteReward(url)


def test_the_servers_of_a_reward_must_have_the_same_name():
    with raises("reward-source", rewards=["a", "b"]):
        RemoteReward("http://h/a,http://h/b")
    assert RemoteReward("https://h/prefix/a").name == "a"


def test_pickled_data_is_rejected(server):
    import pickle

    class Bomb:
        def __reduce__(self):
            return (exec, ("raise SystemExit",))

    packed = base64.b64encode(pickle.dumps(Bomb())).decode()
    body = request_for("a")
    body["batch"]["images"] = [packed]
    assert post(server, body).status_code == 422
    assert post(server, pickle.dumps(Bomb())).status_code == 400
    assert requests.get(f"{server}/health", timeout=30).ok
