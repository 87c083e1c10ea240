"""Rewards in the forms of other toolkits give equal scores in this process, in another process, and on a server."""

import json
import subprocess
import sys

import numpy as np
import pytest
from support.foreign_rewards import ALL
from support.paths import TESTS
from support.reward_batches import FOO, active
from support.reward_server import serving

from tdmr1_rewards.api import RewardBatch, RewardContext
from tdmr1_rewards.calling.process import WORKER
from tdmr1_rewards.calling.wire import PROTOCOL, encode_batch
from tdmr1_rewards.registry import RewardRegistry
from tdmr1_rewards.scoring.runner import RewardRunner
from tdmr1_rewards.serving.server import build_app
from tdmr1_rewards.sources.source import create_reward, find_reward, reference_for

pytestmark = pytest.mark.unit

FILE = TESTS / "support" / "foreign_rewards.py"
GROUPS, SIZE = 3, 5
"""Groups of a batch, and images of a group. A server may get calls of 8 images, which is no multiple of a group."""
TOKEN = "token"


def find(name):
    scope = "_spec" if name.endswith("groupwise") else ""
    return find_reward(RewardRegistry([]), f"{FILE}:{name}{scope}")


@pytest.fixture(scope="module")
def batch():
    """Random images; the groups are interleaved."""
    count = GROUPS * SIZE
    groups = [i % GROUPS for i in range(count)]
    return RewardBatch(
        images=np.random.default_rng(0).integers(0, 256, (count, 6, 7, 3), np.uint8),
        prompts=[f"prompt {group}" for group in groups],
        metadata=[{} for _ in groups],
        group_ids=groups,
        image_ids=list(range(count)),
        context=RewardContext(None, 0, 0),
    )


def expected(batch, scope):
    """The scores, computed here."""
    means = batch.images.reshape(len(batch), -1).mean(1) / 255
    groups = np.asarray(batch.group_ids)
    centers = np.array([means[groups == group].mean() for group in groups])
    return pytest.approx(list(means - centers if scope == "groupwise" else means), abs=1e-6)


def scores_of(reward, found, batch):
    """The scores of a reward that runs in this process, or whose client does, with calls of at most 8 images."""
    entry = active(reward, found.spec.name, spec={"groupwise": found.spec.groupwise}, batch_size=8)
    with RewardRunner([entry], "weighted_sum", 1) as runner:
        return runner.score(batch).total


@pytest.mark.parametrize(("choices", "name"), ALL.items(), ids=ALL.values())
def test_in_this_process(choices, name, batch):
    found = find(name)
    assert scores_of(create_reward(found, {}), found, batch) == expected(batch, choices[-1])


@pytest.fixture(scope="module")
def worker():
    """Sends one request to a worker process, and returns its answer. It builds one reward after another."""
    process = subprocess.Popen([sys.executable, str(WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(**request):
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()
        answer = json.loads(process.stdout.readline())
        assert "ok" in answer, answer.get("traceback")
        return answer["ok"]

    yield ask
    process.stdin.close()
    process.wait(20)


@pytest.mark.parametrize(("choices", "name"), ALL.items(), ids=ALL.values())
def test_in_another_process(choices, name, batch, worker):
    found = find(name)
    reference = reference_for(found, {}).document()
    form = found.spec.image_format
    worker(do="build", protocol=PROTOCOL, owner=str(found), image_format=form, reference=reference)
    worker(do="setup", device="cpu")
    answer = worker(do="score", batch=encode_batch(batch))
    assert answer["scores"] == expected(batch, choices[-1])


SERVED = list(ALL.items())[::7]
"""One in seven: each form, mode, kind and scope is among them."""


def test_every_choice_is_served_once():
    for position in range(4):
        assert {choices[position] for choices, _ in SERVED} == {choices[position] for choices in ALL}


@pytest.mark.parametrize(("choices", "name"), SERVED, ids=[name for _, name in SERVED])
def test_on_a_server(choices, name, batch, monkeypatch):
    monkeypatch.setenv("TDMR1_REWARD_TOKEN", TOKEN)
    found = find(name)
    app = build_app(create_reward(found, {}), found.spec, TOKEN, provenance=FOO)
    with serving(app) as address:
        remote = find_reward(RewardRegistry([]), f"remote:{address}/{found.spec.name}")
        assert scores_of(create_reward(remote, {}), remote, batch) == expected(batch, choices[-1])
