"""The server of the labelling page: its answers, and the requests that it refuses."""

import json
import statistics
import time

import numpy as np
import pytest
from starlette.testclient import TestClient
from support.errors import raises
from support.feedback_images import open_round, solid_image

from tdmr1_rewards.errors import Tdmr1Error
from tdmr1_rewards.feedback.hashing import image_hash
from tdmr1_rewards.feedback.server import MAX_BODY, PAGE, build_app, names_this_server

pytestmark = pytest.mark.unit

TOKEN = "tok_en-1"
HOME = "http://127.0.0.1:8000"


@pytest.fixture
def log():
    return []


@pytest.fixture
def anonymous(store, log):
    """A client without a token."""
    return TestClient(build_app(store, TOKEN, log=log.append), base_url=HOME, raise_server_exceptions=False)


@pytest.fixture
def client(anonymous):
    anonymous.headers["Authorization"] = f"Bearer {TOKEN}"
    return anonymous


@pytest.fixture
def opened(store):
    return open_round(store, [1, 2], [3], judges=2, deadline=time.time() + 60, run="runs/a", step=4)


def body(store, opened, index=0, **changes):
    item = store.items_of(opened.id)[index]
    given = {"key": f"k{index}", "item": item.id, "round": opened.id, "person": "p", "name": "Ada", "answer": "like"}
    return given | changes


def refused(response, status, words, log):
    """Check a refusal: its status and error, the security headers, and one log line without the token."""
    assert response.status_code == status, response.text
    assert words in response.json()["error"]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert len(log) == 1
    assert "\n" not in log[0]
    assert str(status) in log[0]
    assert "testclient" in log[0]
    assert TOKEN not in log[0]


def test_the_page_needs_no_token_and_holds_no_data(anonymous, opened):
    for path, kind in (("/", "text/html"), ("/page.js", "text/javascript"), ("/page.css", "text/css")):
        response = anonymous.get(path)
        assert response.status_code == 200
        assert response.headers["content-type"].startswith(kind)
        assert TOKEN not in response.text
        assert "a cat" not in response.text


def test_the_page_loads_nothing_from_other_sites_and_has_security_headers(anonymous):
    for file in PAGE.iterdir():
        assert "//cdn" not in file.read_text()
        assert [word for word in file.read_text().split() if "http" in word and "w3.org" not in word] == []
    headers = anonymous.get("/").headers
    policy = headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert (headers["referrer-policy"], headers["cache-control"]) == ("no-referrer", "no-store")
    assert "access-control-allow-origin" not in headers


def test_the_state_without_a_round(client):
    state = client.get("/api/state?person=p").json()
    assert (state["round"], state["rounds"], state["done"], state["all"]) == (None, [], 0, 0)
    assert state["people"] == [""]


def test_state_items_images_answers_and_undo(client, store, opened):
    store.set_message("training waits for you")
    offers = client.get("/api/items?person=p&limit=2").json()
    assert [(offer["prompt"], offer["group"], offer["round"]) for offer in offers] == [("a cat", 0, opened.id)] * 2
    shown = client.get(f"/api/images/{offers[0]['hash']}")
    assert shown.headers["content-type"] == "image/png"
    assert "immutable" in shown.headers["cache-control"]
    assert shown.content == store.image_path(image_hash(solid_image(1))).read_bytes()
    assert client.post("/api/answers", json=body(store, opened)).json()["answer"] == "like"
    (given,) = store.answers()
    assert (given.answer, given.person, given.name, given.run, given.step) == ("like", "p", "Ada", "runs/a", 4)
    client.post("/api/answers", json=body(store, opened, key="q", person="q", answer="dislike", name=""))
    state = client.get("/api/state?person=p&name=Ada").json()
    assert state["message"] == "training waits for you"
    assert (state["done"], state["all"], state["remaining"]) == (1, 3, 2)
    assert state["agreement"]["share"] == 0.0
    assert state["agreement"]["pairs"] == 1
    assert sorted(state["people"]) == ["", "Ada"]
    assert abs(state["time"] - time.time()) < 5
    assert 0 <= state["time"] - state["read"] < 5
    assert state["question"] == "Do you like this image?"
    assert (state["round"]["title"], state["round"]["deadline"]) == ("title", opened.deadline)
    undone = client.post("/api/undo", json={"key": "u", "person": "p"}).json()["undone"]
    assert undone == offers[0]
    assert client.post("/api/undo", json={"key": "v", "person": "p"}).json() == {"undone": None}
    assert [answer.person for answer in store.answers()] == ["q"]


def test_groups_are_completed_on_request(client, opened):
    assert len(client.get("/api/items?person=p&limit=1").json()) == 1
    assert len(client.get("/api/items?person=p&limit=1&groups=1").json()) == 2


def test_an_older_unfinished_round_is_shown_after_a_finished_one(client, store):
    older = open_round(store, [1], step=1)
    newer = open_round(store, [2], step=2)
    assert client.get("/api/state?person=p").json()["round"]["id"] == newer.id
    client.post("/api/answers", json=body(store, newer))
    assert client.get("/api/state?person=p").json()["round"]["id"] == older.id


def test_an_answer_sent_several_times_is_stored_once(client, store, opened):
    for _ in range(3):
        assert client.post("/api/answers", json=body(store, opened)).status_code == 200
    assert len(store.answers()) == 1


@pytest.mark.parametrize("given", [None, "", "Bearer", "Bearer ", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x"])
def test_every_api_path_needs_the_token(anonymous, store, opened, log, given):
    if given is not None:
        anonymous.headers["Authorization"] = given
    name = store.items_of(opened.id)[0].hash
    for path in ("/api/state?person=p", "/api/items?person=p", f"/api/images/{name}", "/api/nothing"):
        refused(anonymous.get(path), 401, "token", log)
        log.clear()
    for path in ("/api/answers", "/api/undo"):
        refused(anonymous.post(path, json=body(store, opened)), 401, "token", log)
        log.clear()
    assert store.answers() == []


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1:8000", "http://127.0.0.1:8001"])
def test_another_origin_is_refused_even_with_the_token(client, store, opened, log, origin):
    response = client.post("/api/answers", json=body(store, opened), headers={"Origin": origin})
    refused(response, 403, origin, log)
    assert store.answers() == []


def test_the_origin_of_this_server_is_accepted(client, store, opened):
    assert client.post("/api/answers", json=body(store, opened), headers={"Origin": HOME}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "", "127.0.0.1.evil.example", "[", "192.168.1.5"]
)
def test_a_foreign_host_is_refused(client, log, host):
    refused(client.get("/", headers={"Host": host}), 421, "host", log)


@pytest.mark.parametrize(
    ("header", "host", "accepted"),
    [
        ("127.0.0.1:8000", "127.0.0.1", True),
        ("localhost:9", "127.0.0.1", True),
        ("[::1]:8000", "::1", True),
        ("[::1]", "127.0.0.1", True),
        ("192.168.1.5:80", "192.168.1.5", True),
        ("192.168.1.6:80", "192.168.1.5", False),
        ("192.168.1.5:80", "0.0.0.0", True),
        ("[fe80::1]:80", "::", True),
        ("evil.example:80", "0.0.0.0", False),
        ("My-Machine:80", "my-machine", True),
    ],
)
def test_host_headers_that_name_this_server(header, host, accepted):
    assert names_this_server(header, host) is accepted


@pytest.mark.parametrize(
    "name",
    ["../answers.sqlite", "..%2fanswers.sqlite", "%2e%2e/%2e%2e/token", "..%5ctoken", "0" * 64, "x", "%00", "a%0Ab"],
)
def test_no_path_leads_out_of_the_image_folder(client, opened, log, name):
    refused(client.get(f"/api/images/{name}"), 404, "", log)


def test_other_files_of_the_folder_are_not_served(client, opened, log):
    for path in ("/answers.sqlite", "/token", "/images", "/..%2ftoken", "/page/page.js", "/docs", "/openapi.json"):
        refused(client.get(path), 404, "", log)
        log.clear()


@pytest.mark.parametrize("path", ["/api/answers", "/api/undo"])
def test_a_large_body_is_refused_before_it_is_read(client, store, opened, log, path):
    taken = []

    def endless():
        for _ in range(50):
            taken.append(1)
            yield b" " * 1_000_000

    refused(client.post(path, content=endless()), 413, str(MAX_BODY), log)
    log.clear()
    whole = json.dumps(body(store, opened)).encode() + b" " * 50_000_000
    refused(client.post(path, content=whole), 413, str(MAX_BODY), log)
    assert store.answers() == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"answer": "love"}, "answer: input should be 'like', 'dislike' or 'skip'"),
        ({"item": "1"}, "item:"),
        ({"item": True}, "item:"),
        ({"item": 2**70}, "item:"),
        ({"round": 0}, "round:"),
        ({"key": ""}, "key:"),
        ({"key": "k" * 65}, "key:"),
        ({"person": "a b"}, "person:"),
        ({"name": "n" * 61}, "name:"),
        ({"more": 1}, "more:"),
    ],
)
def test_invalid_fields_are_named(client, store, opened, log, changes, words):
    refused(client.post("/api/answers", json=body(store, opened, **changes)), 422, words, log)
    assert store.answers() == []


@pytest.mark.parametrize("content", [b"", b"{", b"\xff"])
def test_a_body_that_is_not_json_is_refused(client, log, content):
    refused(client.post("/api/answers", content=content), 400, "JSON", log)


def test_a_json_list_is_refused(client, log):
    refused(client.post("/api/undo", content=b"[1]"), 422, "the request", log)


def test_an_item_that_is_not_in_the_round_is_refused(client, store, opened, log):
    for changes in ({"item": 999}, {"round": 999}):
        refused(client.post("/api/answers", json=body(store, opened, **changes)), 404, "999", log)
        log.clear()


@pytest.mark.parametrize("query", ["", "person=", "person=a%20b", "person=p&limit=0", "person=p&limit=999"])
def test_invalid_queries_are_refused(client, log, query):
    refused(client.get(f"/api/items?{query}"), 422, "", log)


def test_an_error_of_the_store_is_a_temporary_error(client, store, opened, log, monkeypatch):
    def fails(**_):
        raise Tdmr1Error("the disk is full", "make room")

    monkeypatch.setattr(store, "give", fails)
    refused(client.post("/api/answers", json=body(store, opened)), 503, "the disk is full", log)


def test_an_unexpected_error_is_reported_and_logged(client, store, log, monkeypatch):
    monkeypatch.setattr(store, "open_rounds", lambda: 1 / 0)
    response = client.get("/api/state?person=p")
    assert response.status_code == 500
    assert "ZeroDivisionError" in response.json()["error"]
    assert len(log) == 1


def test_a_path_with_line_breaks_is_logged_on_one_line(client, log):
    client.get("/api/%0Afake%20line%0D/../../x")
    assert len(log) == 1
    assert not set("\r\n") & set(log[0])


def test_a_token_that_no_header_can_carry_is_refused(store):
    with raises("token-invalid"):
        build_app(store, "käse", log=print)


def test_requests_are_fast_with_500_images_and_five_people(client, store):
    """Measured in CPU time of server and client, so that other processes do not matter."""
    noise = np.random.default_rng(0).integers(0, 256, (500, 8, 8, 3), dtype=np.uint8)
    from tdmr1_rewards.feedback.store import NewItem

    groups = [[NewItem(image, f"prompt {start}") for image in noise[start : start + 10]] for start in range(0, 500, 10)]
    opened = store.open_round("many", groups, run="r", step=1, judges=5)
    with store._database.transaction() as cursor:  # 2,000 calls of `give` would be slow
        for person in "abcd":
            cursor.execute("INSERT INTO people VALUES (?, '')", (person,))
            cursor.execute(
                "INSERT INTO answers (key, item, round, person, answer, time) "
                "SELECT ? || item, item, round, ?, iif(item % 3, 'like', 'dislike'), 1 FROM round_items",
                (person, person),
            )
    assert store.progress(opened.id).answers == 2000
    for path in ("/api/state?person=e", "/api/items?person=e&limit=8"):
        assert client.get(path).status_code == 200
        cpu_times, wall_times = [], []
        for _ in range(20):
            cpu, wall = time.process_time(), time.perf_counter()
            client.get(path)
            cpu_times.append(time.process_time() - cpu)
            wall_times.append(time.perf_counter() - wall)
        cpu, wall = (1000 * statistics.median(times) for times in (cpu_times, wall_times))
        print(path, f"{cpu:.1f} ms CPU time, {wall:.1f} ms wall time")
        assert cpu < 100
