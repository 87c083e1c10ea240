"""The reward server and its client, over real sockets."""

import base64
import json
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
import requests
import uvicorn
from support.faulty_rewards import Faulty
from support.reward_batches import FOO, active, make_batch

from tdmr1_rewards.api import RewardResult, RewardSpec
from tdmr1_rewards.calling.wire import PROTOCOL, encode_batch
from tdmr1_rewards.errors import Tdmr1Error
from tdmr1_rewards.scoring.runner import RewardRunner
from tdmr1_rewards.serving.addresses import listen
from tdmr1_rewards.serving.server import RequestBatcher, build_app
from tdmr1_rewards.sources import remote as remote_module
from tdmr1_rewards.sources.remote import RemoteOptions, RemoteReward

pytestmark = pytest.mark.unit

TOKEN = "tok_en-1"
SPEC = RewardSpec(
    name="faulty", summary="s", factory="a:b", default_prompts="count", image_format="array", batch_size=8
)


@contextmanager
def serving(app, port=0):
    """A real server for the app; gives its address."""
    listening = listen("127.0.0.1", port)
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()


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


def failure_of(call):
    with pytest.raises(Tdmr1Error) as caught:
        call()
    assert "\n" not in caught.value.message
    return caught.value


def test_health_needs_no_token_and_tells_nothing(server):
    response = requests.get(f"{server}/health", timeout=30)
    assert (response.status_code, response.json()) == (200, {"status": "ok"})


def test_info_tells_what_a_client_needs(server):
    response = requests.get(f"{server}/info", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=30)
    told = response.json()
    assert (told["protocol"], told["name"], told["batch_size"], told["max_body"]) == (PROTOCOL, "faulty", 8, 100_000)


@pytest.mark.parametrize("token", [None, "", "wrong", TOKEN[:-1], TOKEN + "x"])
def test_no_token_no_scores(server, token, caplog):
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


def test_nothing_but_the_three_paths_is_there(server):
    for path in ("/", "/docs", "/openapi.json", "/score/x"):
        response = requests.get(f"{server}{path}", timeout=30)
        assert response.status_code == 404
        assert "POST /score" in response.json()["hint"]
    assert requests.get(f"{server}/score", timeout=30).status_code == 405


def test_scores_nones_and_details_come_back(server):
    answer = post(server, request_for("a", "b")).json()
    assert answer == {"protocol": PROTOCOL, "scores": [0.0, 1.0], "details": [{}, {}]}
    answer = post(server, request_for("details")).json()
    assert answer["scores"] == [None]
    assert answer["details"] == [{"boxes": [[1.0, 1.0]], "device": "cuda:5"}]


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        (b"", 400, "is not JSON"),
        (b"\xff\xfe", 400, "is not JSON"),
        (b"[" * 50_000, 400, "is not JSON"),
        ([1], 400, "is a JSON list, not an object"),
        ({"protocol": 2, "batch": {}}, 400, "protocol version 2; this server needs version 1"),
        ({"protocol": 1}, 422, "the batch is a NoneType"),
        ({"protocol": 1, "batch": request_for()["batch"]}, 422, "the request has no images"),
        (request_for("a")["batch"] | {"protocol": 1, "batch": {"images": []}}, 422, "context is a NoneType"),
        ({"protocol": 1, "batch": request_for("a")["batch"] | {"images": ["gASVAA=="]}}, 422, "images[0] is no PNG"),
        (b"x" * 100_001, 413, "larger than 100000 bytes"),
    ],
)
def test_a_bad_request_gets_its_sentence(server, body, status, told, caplog):
    response = post(server, body)
    assert response.status_code == status
    assert told in response.json()["error"]
    assert f"refused a POST from 127.0.0.1 ({status}): " in caplog.text


def test_a_body_without_a_declared_length_is_counted(server):
    chunks = (b"x" * 60_000 for _ in range(3))
    headers = {"Authorization": f"Bearer {TOKEN}"}
    response = requests.post(f"{server}/score", data=chunks, headers=headers, timeout=30)
    assert response.status_code == 413


def test_a_failure_of_the_reward_is_500_with_its_sentence(server):
    response = post(server, request_for("raise"))
    assert response.status_code == 500
    assert response.json()["error"] == "reward 'faulty' (from foo-dist 1.2) raised ValueError: no such word"


def test_a_run_folder_of_another_machine_is_not_written_to(server, tmp_path):
    assert post(server, request_for("raise", run_folder=tmp_path)).status_code == 500
    assert list(tmp_path.iterdir()) == []


def test_metadata_decides_on_the_server_too(server):
    batch = make_batch("a", "b", metadata=[{"rewards": ["faulty"]}, {"rewards": ["faulty", "other"]}])
    answer = post(server, {"protocol": 1, "batch": encode_batch(batch)}).json()
    assert answer["scores"] == [0.0, 1.0]


def test_requests_that_wait_together_share_a_call_and_get_their_own_scores():
    calls, begun, release = [], threading.Event(), threading.Event()

    def slow(batch):
        calls.append(list(batch.prompts))
        begun.set()
        release.wait(20)
        if "bad" in batch.prompts:
            raise OSError("bad")
        return RewardResult([float(prompt) for prompt in batch.prompts], [{"n": len(batch)}] * len(batch))

    batcher = RequestBatcher(slow, SPEC, FOO, "cpu")
    first = batcher.submit(make_batch("0", first_id=0))
    assert begun.wait(10)
    together = [
        batcher.submit(make_batch("1", "2", first_id=10, group_ids=[1, 1])),
        batcher.submit(make_batch("3", first_id=10, group_ids=[2])),  # an image of the request before
        batcher.submit(make_batch("4", first_id=20, group_ids=[1])),  # its group
        batcher.submit(make_batch("5", first_id=30, group_ids=[3], iteration=1)),  # another context
        batcher.submit(make_batch("6", first_id=40, group_ids=[4])),
        batcher.submit(make_batch(*"7" * 6, first_id=50, group_ids=[5] * 6)),  # too many
    ]
    release.set()
    assert first.result(20).scores == [0.0]
    assert [future.result(20).scores for future in together] == [[1.0, 2.0], [3.0], [4.0], [5.0], [6.0], [7.0] * 6]
    assert calls == [["0"], ["1", "2", "6"], ["3", "4", *"777777"], ["5"]]
    assert together[4].result().details == [{"n": 3}]
    batcher.close()


def test_one_bad_request_of_a_shared_call_spoils_no_other():
    begun, release = threading.Event(), threading.Event()

    def slow(batch):
        begun.set()
        release.wait(20)
        if "bad" in batch.prompts:
            raise OSError("spoilt")
        return RewardResult([1.0] * len(batch))

    batcher = RequestBatcher(slow, SPEC, FOO, "cpu")
    batcher.submit(make_batch("0", first_id=0))
    assert begun.wait(10)
    good = batcher.submit(make_batch("a", first_id=10, group_ids=[1]))
    bad = batcher.submit(make_batch("bad", first_id=20, group_ids=[2]))
    release.set()
    assert good.result(20).scores == [1.0]
    with pytest.raises(Tdmr1Error, match="spoilt"):
        bad.result(20)
    batcher.close()


def test_concurrent_requests_over_http(server):
    answers = {}

    def ask(first):
        batch = make_batch("a", "b", "c", first_id=first, group_ids=[first] * 3)
        answers[first] = post(server, {"protocol": 1, "batch": encode_batch(batch)}).json()["scores"]

    threads = [threading.Thread(target=ask, args=(10 * n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == {10 * n: [0.0, 1.0, 2.0] for n in range(6)}


def test_a_full_desk_asks_to_come_back(monkeypatch):
    monkeypatch.setattr("tdmr1_rewards.serving.server.MAX_WAITING", 0)
    with serving(build_app(Faulty(), SPEC, TOKEN)) as address:
        assert post(address, request_for("a")).status_code == 503
        reward = client(address)
        assert "too many requests" in failure_of(lambda: reward(make_batch("a"))).message


@pytest.mark.parametrize("token", ["", " ", "a b", "tök", "a\nb"])
def test_what_no_header_can_carry_is_no_token(token):
    with pytest.raises(Tdmr1Error, match="the token has characters") as caught:
        build_app(Faulty(), SPEC, token)
    assert len(token) < 3 or token not in caught.value.message
    if token:
        with pytest.raises(Tdmr1Error, match="the token has characters"):
            RemoteReward("http://h/a", RemoteOptions(token=token))


def test_the_client_is_a_reward_like_any_other(server, monkeypatch):
    monkeypatch.setenv("TDMR1_REWARD_TOKEN", TOKEN)
    reward = RemoteReward(f"{server}/faulty", RemoteOptions(patience=0))
    with RewardRunner([active(reward, "far")], "weighted_sum", 1) as runner:
        scored = runner.score(make_batch("a", "☃", "c"))
        assert scored.total == [0.0, 1.0, 2.0]
        told = failure_of(lambda: runner.score(make_batch("nan")))
    assert told.message == (
        f"reward 'far' (from foo-dist 1.2) failed: the server at {server} failed: "
        "reward 'faulty' (from foo-dist 1.2) answered nan, a float, for image 100"
    )
    assert "finite number" in told.hint


def test_tokens_are_refused_in_words(server, monkeypatch):
    told = failure_of(lambda: client(server, token="wrong").setup("cpu"))
    assert told.message == f"the server at {server} refuses the token"
    told = failure_of(lambda: client(server, token=None, token_variable="MINE").setup("cpu"))
    assert told.message == f"the server at {server} wants a token"
    assert "set MINE to the token" in told.hint
    assert TOKEN not in repr(RemoteOptions(token=TOKEN))


def test_another_reward_or_version_is_told(server, monkeypatch):
    other = RemoteReward(f"{server}/other", RemoteOptions(token=TOKEN, patience=0))
    assert "serves the reward 'faulty', not 'other'" in failure_of(lambda: other.setup("cpu")).message
    monkeypatch.setattr(remote_module, "PROTOCOL", 7)
    assert (
        "speaks version 1 of the protocol, and this tdmr1 speaks 7"
        in failure_of(lambda: client(server).setup("cpu")).message
    )
    assert "version 7" in failure_of(lambda: client(server)(make_batch("a"))).message


def test_a_request_that_is_too_large_is_not_sent(server):
    reward = client(server)
    reward.setup("cpu")
    noise = np.random.default_rng(0).integers(0, 256, (1, 200, 200, 3), np.uint8)
    batch = make_batch("a")
    object.__setattr__(batch, "images", noise)
    assert "and the server takes 100000 at most" in failure_of(lambda: reward(batch)).message


def test_a_server_that_is_away_is_waited_for_a_while_and_then_told():
    reward = client("http://127.0.0.1:9", patience=0.6)
    began = time.monotonic()
    told = failure_of(lambda: reward.setup("cpu"))
    assert 0.2 < time.monotonic() - began < 20
    assert told.message.startswith("the server at http://127.0.0.1:9 could not be reached for")
    assert "tdmr1 rewards serve" in told.hint


def test_a_server_that_comes_back_is_used_again():
    with serving(build_app(Faulty(), SPEC, TOKEN)) as address:
        reward = client(address, patience=30)
        reward.setup("cpu")
        assert reward(make_batch("a")).scores == [0.0]
    answer = []
    asking = threading.Thread(target=lambda: answer.append(reward(make_batch("a", "b")).scores))
    asking.start()
    time.sleep(0.4)
    assert answer == []
    with serving(build_app(Faulty(), SPEC, TOKEN), int(address.rpartition(":")[2])):
        asking.join(40)
    assert answer == [[0.0, 1.0]]


def test_several_servers_take_turns_and_stand_in_for_each_other():
    seen = []

    def noting(name):
        def reward(batch):
            seen.append(name)
            return RewardResult([1.0] * len(batch))

        return reward

    with serving(build_app(noting("a"), SPEC, TOKEN)) as first:
        with serving(build_app(noting("b"), SPEC, TOKEN)) as second:
            reward = RemoteReward(f"{first}/faulty, {second}/faulty", RemoteOptions(token=TOKEN, patience=0))
            reward.setup("cpu")
            for _ in range(4):
                reward(make_batch("x"))
            assert sorted(seen) == ["a", "a", "b", "b"]
            assert seen[0] != seen[1]
        for _ in range(3):
            assert reward(make_batch("x")).scores == [1.0]
    reward.close()


def test_a_slow_answer_is_told_and_not_asked_for_again(server):
    told = failure_of(lambda: client(server, read_timeout=0.3, patience=30)(make_batch("hang 1")))
    assert told.message == f"the server at {server} did not answer within 0.3 s"


def answering(status, body, **headers):
    """An app that answers the same to everything."""

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
    ("status", "body", "told"),
    [
        (200, b"<html>", "answered with something that is no JSON object"),
        (200, b"[]", "answered with something that is no JSON object"),
        (404, b"nothing", "there is no reward server at"),
        (302, b"", "is elsewhere now: http://there/"),
        (500, b"oops", "failed: 500 Internal Server Error"),
        (503, b"", "is away or has no room (503 Service Unavailable)"),
        (200, b'{"protocol": 1}', "scores is missing, not a list"),
    ],
)
def test_strange_servers_are_told(status, body, told):
    with serving(answering(status, body, location="http://there/")) as address:
        assert told in failure_of(lambda: client(address)(make_batch("a"))).message


@pytest.mark.parametrize(
    "url", ["", "host:80/x", "ftp://host/x", "http://host", "http://host/?x", "http://a/x,http://b"]
)
def test_a_url_without_a_reward_is_refused(url):
    with pytest.raises(Tdmr1Error, match="is not the address of a reward on a server"):
        RemoteReward(url)


def test_one_reward_has_one_name():
    with pytest.raises(Tdmr1Error, match="name several: a, b"):
        RemoteReward("http://h/a,http://h/b")
    assert RemoteReward("https://h/prefix/a").name == "a"


def test_no_pickle_is_read(server):
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
