"""What the page's server answers, and above all what it does not."""

import json
import statistics
import time

import numpy as np
import pytest
from starlette.testclient import TestClient
from support.feedback_images import open_round, solid_image

from tdmr1_rewards.errors import Tdmr1Error
from tdmr1_rewards.feedback.hashing import image_hash
from tdmr1_rewards.feedback.server import MAX_BODY, PAGE, build_app, is_own_host
from tdmr1_rewards.feedback.store import FeedbackStore

pytestmark = pytest.mark.unit

TOKEN = "tok_en-1"
HOME = "http://127.0.0.1:8000"


@pytest.fixture
def store(tmp_path):
    made = FeedbackStore(tmp_path / "feedback")
    yield made
    made.close()


@pytest.fixture
def log():
    return []


@pytest.fixture
def anybody(store, log):
    """A client without a token."""
    return TestClient(build_app(store, TOKEN, tell=log.append), base_url=HOME, raise_server_exceptions=False)


@pytest.fixture
def client(anybody):
    anybody.headers["Authorization"] = f"Bearer {TOKEN}"
    return anybody


@pytest.fixture
def opened(store):
    return open_round(store, [1, 2], [3], judges=2, deadline=time.time() + 60, run="runs/a", step=4)


def body(store, opened, index=0, **changes):
    item = store.items_of(opened.id)[index]
    given = {"key": f"k{index}", "item": item.id, "round": opened.id, "person": "p", "name": "Ada", "answer": "like"}
    return given | changes


def refused(response, status, words, log):
    """The refusal is a sentence, changes nothing of security, and is one line of the log without a token."""
    assert response.status_code == status, response.text
    assert words in response.json()["error"]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert len(log) == 1
    assert "\n" not in log[0]
    assert str(status) in log[0]
    assert "testclient" in log[0]
    assert TOKEN not in log[0]


def test_the_page_needs_no_token_and_holds_no_data(anybody, opened):
    for path, kind in (("/", "text/html"), ("/page.js", "text/javascript"), ("/page.css", "text/css")):
        response = anybody.get(path)
        assert response.status_code == 200
        assert response.headers["content-type"].startswith(kind)
        assert TOKEN not in response.text
        assert "a cat" not in response.text


def test_the_page_loads_nothing_from_elsewhere_and_is_guarded(anybody):
    for file in PAGE.iterdir():
        assert "//cdn" not in file.read_text()
        assert [word for word in file.read_text().split() if "http" in word and "w3.org" not in word] == []
    headers = anybody.get("/").headers
    policy = headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert (headers["referrer-policy"], headers["cache-control"]) == ("no-referrer", "no-store")
    assert "access-control-allow-origin" not in headers


def test_the_state_of_nothing(client):
    state = client.get("/api/state?person=p").json()
    assert (state["round"], state["rounds"], state["done"], state["all"]) == (None, [], 0, 0)
    assert state["people"] == [""]


def test_state_items_pictures_answers_and_undo(client, store, opened):
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
    assert (state["round"]["title"], state["round"]["deadline"]) == ("title", opened.deadline)
    undone = client.post("/api/undo", json={"key": "u", "person": "p"}).json()["undone"]
    assert undone == offers[0]
    assert client.post("/api/undo", json={"key": "v", "person": "p"}).json() == {"undone": None}
    assert [answer.person for answer in store.answers()] == ["q"]


def test_whole_groups_are_given_on_request(client, opened):
    assert len(client.get("/api/items?person=p&limit=1").json()) == 1
    assert len(client.get("/api/items?person=p&limit=1&groups=1").json()) == 2


def test_a_finished_round_gives_way_to_an_older_one_that_is_not(client, store):
    older = open_round(store, [1], step=1)
    newer = open_round(store, [2], step=2)
    assert client.get("/api/state?person=p").json()["round"]["id"] == newer.id
    client.post("/api/answers", json=body(store, newer))
    assert client.get("/api/state?person=p").json()["round"]["id"] == older.id


def test_an_answer_sent_twice_is_one(client, store, opened):
    for _ in range(3):
        assert client.post("/api/answers", json=body(store, opened)).status_code == 200
    assert len(store.answers()) == 1


@pytest.mark.parametrize("given", [None, "", "Bearer", "Bearer ", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x"])
def test_without_the_token_there_is_nothing(anybody, store, opened, log, given):
    if given is not None:
        anybody.headers["Authorization"] = given
    name = store.items_of(opened.id)[0].hash
    for path in ("/api/state?person=p", "/api/items?person=p", f"/api/images/{name}", "/api/nothing"):
        refused(anybody.get(path), 401, "token", log)
        log.clear()
    for path in ("/api/answers", "/api/undo"):
        refused(anybody.post(path, json=body(store, opened)), 401, "token", log)
        log.clear()
    assert store.answers() == []


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1:8000", "http://127.0.0.1:8001"])
def test_another_origin_is_refused_even_with_the_token(client, store, opened, log, origin):
    response = client.post("/api/answers", json=body(store, opened), headers={"Origin": origin})
    refused(response, 403, origin, log)
    assert store.answers() == []


def test_our_own_origin_is_fine(client, store, opened):
    assert client.post("/api/answers", json=body(store, opened), headers={"Origin": HOME}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "", "127.0.0.1.evil.example", "[", "192.168.1.5"]
)
def test_a_foreign_host_is_refused(client, log, host):
    refused(client.get("/", headers={"Host": host}), 421, "host", log)


@pytest.mark.parametrize(
    ("header", "host", "own"),
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
def test_which_hosts_are_own(header, host, own):
    assert is_own_host(header, host) is own


@pytest.mark.parametrize(
    "name",
    ["../answers.sqlite", "..%2fanswers.sqlite", "%2e%2e/%2e%2e/token", "..%5ctoken", "0" * 64, "x", "%00", "a%0Ab"],
)
def test_no_path_leads_out_of_the_pictures(client, opened, log, name):
    refused(client.get(f"/api/images/{name}"), 404, "", log)


def test_the_folder_itself_is_not_served(client, opened, log):
    for path in ("/answers.sqlite", "/token", "/images", "/..%2ftoken", "/page/page.js", "/docs", "/openapi.json"):
        refused(client.get(path), 404, "", log)
        log.clear()


@pytest.mark.parametrize("path", ["/api/answers", "/api/undo"])
def test_a_huge_body_is_refused_unread(client, store, opened, log, path):
    taken = []

    def endless():
        for _ in range(50):
            taken.append(1)
            yield b" " * 1_000_000

    refused(client.post(path, content=endless()), 413, f"larger than {MAX_BODY} bytes", log)
    log.clear()
    whole = json.dumps(body(store, opened)).encode() + b" " * 50_000_000
    refused(client.post(path, content=whole), 413, "larger", log)
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
def test_wrong_values_are_told(client, store, opened, log, changes, words):
    refused(client.post("/api/answers", json=body(store, opened, **changes)), 422, words, log)
    assert store.answers() == []


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 30_000])
def test_what_is_not_json_is_told(client, log, content):
    refused(client.post("/api/answers", content=content), 400, "not JSON", log)


def test_a_document_of_another_kind_is_told(client, log):
    refused(client.post("/api/undo", content=b"[1]"), 422, "the request", log)


def test_an_item_that_is_not_asked_is_told(client, store, opened, log):
    for changes in ({"item": 999}, {"round": 999}):
        refused(client.post("/api/answers", json=body(store, opened, **changes)), 404, "has no picture", log)
        log.clear()


@pytest.mark.parametrize("query", ["", "person=", "person=a%20b", "person=p&limit=0", "person=p&limit=999"])
def test_wrong_queries_are_told(client, log, query):
    refused(client.get(f"/api/items?{query}"), 422, "", log)


def test_a_store_that_fails_is_told_as_something_that_may_pass(client, store, opened, log, monkeypatch):
    def fails(**_):
        raise Tdmr1Error("the disk is full", "make room")

    monkeypatch.setattr(store, "give", fails)
    refused(client.post("/api/answers", json=body(store, opened)), 503, "the disk is full", log)


def test_what_nobody_foresaw_is_told_and_logged(client, store, log, monkeypatch):
    monkeypatch.setattr(store, "open_rounds", lambda: 1 / 0)
    response = client.get("/api/state?person=p")
    assert response.status_code == 500
    assert "ZeroDivisionError" in response.json()["error"]
    assert len(log) == 1


def test_a_log_line_stays_one_line(client, log):
    client.get("/api/%0Afake%20line%0D/../../x")
    assert len(log) == 1
    assert not set("\r\n") & set(log[0])


def test_a_token_that_no_header_can_carry_is_refused(store):
    with pytest.raises(Tdmr1Error, match="token"):
        build_app(store, "käse", tell=print)


def test_500_pictures_of_five_people_answer_in_time(client, store):
    """In the processor's time, client included: on a machine that has nothing else to do it is the time in all."""
    noise = np.random.default_rng(0).integers(0, 256, (500, 8, 8, 3), dtype=np.uint8)
    from tdmr1_rewards.feedback.store import NewItem

    groups = [[NewItem(image, f"prompt {start}") for image in noise[start : start + 10]] for start in range(0, 500, 10)]
    opened = store.open_round("many", groups, run="r", step=1, judges=5)
    with store._database.transaction() as cursor:  # 2,000 answers one by one would take the test's time, not the page's
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
        work, waits = [], []
        for _ in range(20):
            processor, clock = time.process_time(), time.perf_counter()
            client.get(path)
            work.append(time.process_time() - processor)
            waits.append(time.perf_counter() - clock)
        print(path, f"{1000 * statistics.median(work):.1f} ms of work, {1000 * statistics.median(waits):.1f} ms in all")
        assert statistics.median(work) < 0.1
