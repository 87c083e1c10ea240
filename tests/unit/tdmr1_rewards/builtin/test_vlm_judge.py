"""vlm_judge with a local HTTP server: valid and invalid answers, retries, the API key, the cache and limits."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from support.errors import raises
from support.reward_batches import batch_of

from tdmr1_rewards.builtin import vlm_judge
from tdmr1_rewards.builtin.vlm_judge import BadAnswer, Pace, VlmJudge, VlmJudgeOptions, parse_answer, request_body
from tdmr1_rewards.calling.reference import validate_options

pytestmark = pytest.mark.unit

KEY = "sk-very-secret-0123"
Answer = tuple[int, str, dict[str, str]]


class Server:
    """A chat completions server. `answer` makes each response from the number of the request and its body."""

    def __init__(self, answer: Callable[[int, dict], Answer]) -> None:
        self.requests: list[tuple[dict, dict]] = []
        lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(server.requests)
                    server.requests.append((dict(self.headers), body))
                status, text, headers = answer(number, body) if self.path == "/v1/chat/completions" else (404, "", {})
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: object) -> None: ...

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(answer: Callable[[int, dict], Answer]) -> Server:
        servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def completion(content: str | None, status: int = 200, **headers: str) -> Answer:
    document = {"choices": [{"index": 0, "message": {"role": "assistant", "content": content}}]}
    return status, json.dumps(document), headers


def image_of(body: dict) -> Image.Image:
    url = body["messages"][0]["content"][1]["image_url"]["url"]
    return Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,"))))


def by_brightness(number: int, body: dict) -> Answer:
    """Rates an image by its brightness, 0 to 10."""
    return completion(json.dumps({"reason": "light", "score": image_of(body).getpixel((0, 0))[0] / 25.5}))


GRAYS = [Image.new("RGB", (4, 4), (level,) * 3) for level in (0, 51, 255)]


def make_reward(server: Server, **options: object) -> VlmJudge:
    return VlmJudge(VlmJudgeOptions(base_url=server.url, model="judge-1", **options))


def test_scores_are_the_rescaled_numbers_in_the_order_of_the_images(serve):
    server = serve(by_brightness)
    result = make_reward(server)(batch_of(GRAYS, ["a", "b", "c"]))
    assert result.scores == pytest.approx([0.0, 0.2, 1.0])
    assert result.details[1]["number"] == pytest.approx(2.0)
    assert json.loads(result.details[1]["answer"])["reason"] == "light"
    headers, body = server.requests[0]
    assert "Authorization" not in headers
    assert body["model"] == "judge-1"
    assert body["temperature"] == 0


def test_another_range_is_rescaled_to_0_to_1(serve):
    server = serve(lambda number, body: completion('{"score": 2}'))
    assert make_reward(server, minimum=1, maximum=5)(batch_of(GRAYS[:1], ["a"])).scores == [0.25]


def test_the_template_is_filled_in_one_pass_and_other_braces_are_kept():
    options = VlmJudgeOptions(
        base_url="http://x", model="m", template='{prompt} {"score": {minimum}-{maximum}} {other}', maximum=5
    )
    (text, image) = request_body(options, b"png", "a {maximum} {sign}")["messages"][0]["content"]
    assert text["text"] == 'a {maximum} {sign} {"score": 0-5} {other}'
    assert image["image_url"]["url"] == "data:image/png;base64," + base64.b64encode(b"png").decode()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"score": 7}', 7.0),
        (' {"reason": "x", "score": 0.5} ', 0.5),
        ('```json\n{"score": 10}\n```', 10.0),
        ('```\n{"score": 0}\n```', 0.0),
    ],
)
def test_valid_answers(text, expected):
    assert parse_answer(text, 0, 10).number == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "7", "I'd say 7", "[7]", 'Sure! {"score": 7}', '{"score": 7} and so on', '{"rating": 7}'),
        *(f'{{"score": {value}}}' for value in ('"7"', "true", "null", "11", "-0.1", "NaN", "[7]")),
    ],
)
def test_invalid_answers(text):
    with pytest.raises(BadAnswer):
        parse_answer(text, 0, 10)


def test_an_invalid_answer_is_an_error_or_gives_no_score(serve):
    server = serve(lambda number, body: completion("no" if image_of(body).getpixel((0, 0))[0] else '{"score": 5}'))
    with raises("reward-result", model="judge-1", prompt="b", problem="the answer is not one JSON object: 'no'"):
        make_reward(server)(batch_of(GRAYS[:2], ["a", "b"]))
    result = make_reward(server, on_bad_answer="none")(batch_of(GRAYS[:2], ["a", "b"]))
    assert result.scores == [0.5, None]
    assert result.details[1]["reason"] == "the answer is not one JSON object: 'no'"


@pytest.mark.parametrize("answer", [completion(None), (200, '{"choices": []}', {}), (200, "[]", {})])
def test_a_refusal_is_an_invalid_answer(serve, answer):
    server = serve(lambda number, body: answer)
    assert make_reward(server, on_bad_answer="none")(batch_of(GRAYS[:1], ["a"])).scores == [None]


def test_a_request_is_repeated_after_the_wait_that_a_busy_server_requests(serve):
    server = serve(lambda n, body: completion('{"score": 4}') if n else (429, "slow down", {"Retry-After": "1"}))
    begin = time.monotonic()
    assert make_reward(server)(batch_of(GRAYS[:1], ["a"])).scores == [0.4]
    assert time.monotonic() - begin >= 1
    assert len(server.requests) == 2


def test_a_server_that_stays_busy_is_an_error_after_all_retries(serve):
    server = serve(lambda number, body: (429, "quota used up", {"Retry-After": "0"}))
    with raises("server-refused", status=429, response="quota used up") as caught:
        make_reward(server, retries=2, on_bad_answer="none")(batch_of(GRAYS[:1], ["a"]))
    assert "requests_per_minute" in caught.value.hint
    assert len(server.requests) == 3


def test_a_request_that_times_out_is_repeated(serve):
    done = threading.Event()

    def slow_at_first(number: int, body: dict) -> Answer:
        if number == 0:
            done.wait(30)
        return completion('{"score": 9}')

    server = serve(slow_at_first)
    assert make_reward(server, request_timeout=1.0)(batch_of(GRAYS[:1], ["a"])).scores == [0.9]
    assert len(server.requests) >= 2
    with raises("server-unreachable"):
        make_reward(serve(slow_at_first), request_timeout=0.2, retries=0)(batch_of(GRAYS[:1], ["a"]))
    done.set()


def test_a_missing_server_is_an_error():
    reward = VlmJudge(VlmJudgeOptions(base_url="http://127.0.0.1:9/v1", model="m", retries=0))
    with raises("server-unreachable", url="http://127.0.0.1:9/v1/chat/completions"):
        reward(batch_of(GRAYS[:1], ["a"]))


@pytest.mark.parametrize(
    ("answer", "code"),
    [((200, "<html>", {}), "server-protocol"), ((302, "", {"Location": "http://127.0.0.1:9/"}), "server-refused")],
)
def test_a_server_without_the_api_is_an_error(serve, answer, code):
    with raises(code):
        make_reward(serve(lambda number, body: answer))(batch_of(GRAYS[:1], ["a"]))


def test_the_key_is_read_from_the_environment_and_never_written(serve, monkeypatch, tmp_path):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    server = serve(by_brightness)
    options = VlmJudgeOptions(base_url=server.url, model="m", api_key_env="JUDGE_KEY")
    VlmJudge(options)(batch_of(GRAYS, ["a", "b", "c"], run_folder=tmp_path))
    assert server.requests[0][0]["Authorization"] == f"Bearer {KEY}"
    assert KEY not in options.model_dump_json()
    cached = list(tmp_path.rglob("*.json"))
    assert len(cached) == 3
    assert not [path for path in cached if KEY in path.read_text()]
    refusing = serve(lambda number, body: (401, f"wrong key {KEY}", {}))
    with raises("server-refused", status=401, response="wrong key ***") as caught:
        make_reward(refusing, api_key_env="JUDGE_KEY")(batch_of(GRAYS[:1], ["a"]))
    assert KEY not in json.dumps(caught.value.document())
    monkeypatch.delenv("JUDGE_KEY")
    with raises("token-invalid", variable="JUDGE_KEY"):
        VlmJudge(options).setup("cpu")


def test_no_request_is_sent_twice(serve, tmp_path):
    server = serve(by_brightness)
    batch = batch_of(GRAYS, ["a", "b", "c"])
    first = make_reward(server, cache=tmp_path)(batch)
    assert make_reward(server, cache=tmp_path)(batch).scores == first.scores
    assert len(server.requests) == 3
    for change in ({"model": "judge-2"}, {"template": "{prompt}?"}):
        VlmJudge(VlmJudgeOptions(**{"base_url": server.url, "model": "judge-1", "cache": tmp_path, **change}))(batch)
    assert len(server.requests) == 9
    make_reward(server, cache=tmp_path)(batch_of(GRAYS, ["a", "b", "other"]))
    make_reward(server, cache=tmp_path)(batch_of([GRAYS[1], *GRAYS[1:]], ["a", "b", "c"]))
    assert len(server.requests) == 11


def test_only_valid_answers_are_cached_and_damaged_files_are_replaced(serve, tmp_path):
    server = serve(lambda number, body: completion("hm" if number == 0 else '{"score": 3}'))
    reward = make_reward(server, cache=tmp_path, on_bad_answer="none")
    batch = batch_of(GRAYS[:1], ["a"])
    assert [reward(batch).scores, reward(batch).scores] == [[None], [0.3]]
    (cached,) = tmp_path.iterdir()
    cached.write_text("{")
    assert reward(batch).scores == [0.3]
    assert len(server.requests) == 3
    assert json.loads(cached.read_text()) == {"answer": '{"score": 3}'}


def test_without_a_folder_nothing_is_cached(serve, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    server = serve(by_brightness)
    reward = make_reward(server)
    for _ in range(2):
        reward(batch_of(GRAYS[:1], ["a"]))
    assert len(server.requests) == 2
    assert list(Path().iterdir()) == []


def test_requests_run_concurrently_up_to_the_limit(serve):
    running, most = [], []
    together = threading.Barrier(3)

    def counted(number: int, body: dict) -> Answer:
        running.append(number)
        most.append(len(running))
        together.wait(30)  # returns only while three requests wait here
        running.remove(number)
        return completion('{"score": 1}')

    server = serve(counted)
    make_reward(server, concurrency=3)(batch_of(GRAYS * 3, list("abcdefghi")))
    assert max(most) == 3


def test_the_rate_limit_spaces_requests_evenly(monkeypatch):
    slept: list[float] = []
    clock = SimpleNamespace(monotonic=lambda: 100.0, sleep=slept.append)
    monkeypatch.setattr(vlm_judge, "time", clock)
    pace, free = Pace(per_minute=1200), Pace(None)
    for _ in range(4):
        pace.wait()
    assert slept == pytest.approx([0.0, 0.05, 0.1, 0.15])
    clock.monotonic = lambda: 100.17  # three slots have passed, the fourth has begun
    pace.wait()
    assert slept[-1] == pytest.approx(0.03)
    free.wait()
    free.wait()
    assert slept[-2:] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("options", "wrong", "problem"),
    [
        ({}, ["base_url", "model"], "'base_url' is required"),
        ({"base_url": "127.0.0.1", "model": "m"}, ["base_url"], "'base_url'"),
        ({"base_url": "http://x", "model": "m", "minimum": 5, "maximum": 5}, [""], "`minimum` should be below"),
    ],
)
def test_invalid_options_are_an_error(options, wrong, problem):
    with raises("reward-options", options=wrong) as caught:
        validate_options(VlmJudgeOptions, options, "reward 'vlm_judge'")
    assert problem in caught.value.values["problems"][0]
