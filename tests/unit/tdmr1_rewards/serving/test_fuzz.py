"""Random and hostile requests to both servers: each gets a JSON answer with a status below 500."""

import random

import pytest
from support.feedback_images import open_round
from support.hostile_requests import TOKEN, hostile_body_request, hostile_head_request, send_and_check
from support.limited_server import serving
from support.reward_batches import FOO

from tdmr1_rewards.api import RewardResult, RewardSpec
from tdmr1_rewards.feedback import server as label_server
from tdmr1_rewards.feedback.store import FeedbackStore
from tdmr1_rewards.serving import server as reward_server

pytestmark = pytest.mark.unit

REQUESTS = 250
SPEC = RewardSpec(name="echo", summary="s", factory="a:b", image_format="array", batch_size=8)


@pytest.fixture(scope="module")
def reward_port():
    def echo(batch):
        pairs = zip(batch.prompts, batch.metadata, strict=True)
        return RewardResult(
            [1.0] * len(batch), [{"prompt": prompt, "metadata": dict(known)} for prompt, known in pairs]
        )

    with serving(reward_server.build_app(echo, SPEC, TOKEN, provenance=FOO)) as port:
        yield port


@pytest.fixture(scope="module")
def label_port(tmp_path_factory):
    store = FeedbackStore(tmp_path_factory.mktemp("feedback"))
    open_round(store, [1, 2], [3])
    with serving(label_server.build_app(store, TOKEN, log=lambda line: None)) as port:
        yield port
    store.close()


@pytest.mark.parametrize("server", ["reward", "label"])
def test_hostile_bodies_get_json_with_a_status_below_500(server, reward_port, label_port):
    rng = random.Random(0)
    port = reward_port if server == "reward" else label_port
    statuses = {send_and_check(port, *hostile_body_request(rng, server, number)) for number in range(REQUESTS)}
    assert {200, 400, 422} <= statuses


@pytest.mark.parametrize("server", ["reward", "label"])
def test_hostile_paths_queries_and_headers_get_json_with_a_status_below_500(server, reward_port, label_port):
    rng = random.Random(1)
    port = reward_port if server == "reward" else label_port
    statuses = {send_and_check(port, *hostile_head_request(rng)) for _ in range(REQUESTS)}
    assert {400, 404, 405, 431} <= statuses
