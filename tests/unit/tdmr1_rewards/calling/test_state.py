"""The state of a reward is read as JSON data and restored, in this process and in another one."""

import os
import signal

import numpy as np
import pytest
from support.errors import raises
from support.reward_batches import active, faulty, make_batch

from tdmr1_rewards.api import RewardResult
from tdmr1_rewards.scoring.failures import RewardFailed
from tdmr1_rewards.scoring.runner import RewardRunner
from tdmr1_rewards.sources.foreign import adapt

pytestmark = pytest.mark.unit


class Remembering:
    """The score is the number of calls so far."""

    def __init__(self, state=None):
        self.state = {"calls": 0} if state is None else state
        self.device = None

    def setup(self, device):
        self.device = device

    def __call__(self, batch):
        self.state["calls"] += 1
        return RewardResult([self.state["calls"]] * len(batch))

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        assert self.device is not None, "setup must come first"
        self.state = state


def forgetful(batch):
    return RewardResult([0.0] * len(batch))


@pytest.fixture(params=["here", "isolated"])
def runner(request):
    reward = Remembering() if request.param == "here" else faulty("Remembering")
    with RewardRunner([active(reward), active(forgetful, "other")], "weighted_sum", 1) as runner:
        yield runner


def score(runner):
    return runner.score(make_batch("a", "b")).per_reward["x"]


def test_a_state_is_read_and_restored(runner):
    assert runner.states() == {}, "no state before setup"
    score(runner), score(runner)
    states = runner.states()
    assert states == {"x": {"calls": 2}}
    assert score(runner) == [3, 3]
    assert states == {"x": {"calls": 2}}, "a copy"
    runner.load_states(states)
    assert score(runner) == [3, 3]


def test_a_reward_is_set_up_before_its_state_is_restored(runner):
    runner.load_states({"x": {"calls": 6}})
    assert score(runner) == [7, 7]


def test_preserving_states_restores_the_states(runner):
    with runner.preserving_states():
        assert score(runner) == [1, 1]
        assert score(runner) == [2, 2]
    assert score(runner) == [1, 1]


def test_a_state_of_an_unknown_reward_is_rejected(runner):
    with raises("reward-state", reward="gone", rewards=["x", "other"]):
        runner.load_states({"gone": {}})


def test_a_restarted_process_gets_the_last_state_that_was_read():
    with RewardRunner([active(faulty("Remembering"))], "weighted_sum", 1) as runner:
        score(runner), runner.states(), score(runner)
        os.kill(runner._supervisors["x"].host.pid, signal.SIGKILL)
        with pytest.raises(RewardFailed):
            score(runner)
        assert runner.states() == {"x": {"calls": 1}}
        assert score(runner) == [2, 2]


@pytest.mark.parametrize(
    ("state", "problem"),
    [
        ({"seen": {1, 2}}, "Object of type set is not JSON serializable"),
        ({"mean": np.zeros(2)}, "Object of type ndarray is not JSON serializable"),
        ({"mean": float("nan")}, "Out of range float values are not JSON compliant"),
        ({1: "a"}, "it changes when it is written as JSON and read again"),
        ({"pair": (1, 2)}, "it changes when it is written as JSON and read again"),
        ([1, 2], "it is a list, not a dict"),
    ],
)
def test_a_state_that_is_not_json_is_rejected(state, problem):
    reward = Remembering(state)
    with RewardRunner([active(reward)], "weighted_sum", 1) as runner:
        runner.set_up()
        with raises("reward-state", reward="x", provenance="foo-dist 1.2") as caught:
            runner.states()
    assert isinstance(caught.value, RewardFailed)
    assert caught.value.values["problem"].startswith(problem)
    assert "\n" not in caught.value.message


def test_a_state_cannot_be_restored_without_load_state_dict():
    class Forgetful(Remembering):
        load_state_dict = None

    with RewardRunner([active(Forgetful())], "weighted_sum", 1) as runner, raises("reward-state", reward="x"):
        runner.load_states({"x": {"calls": 1}})


def test_a_state_that_is_not_json_is_rejected_in_another_process():
    with RewardRunner([active(faulty("Unspeakable"))], "weighted_sum", 1) as runner:
        runner.set_up()
        with raises("reward-state", reward="x") as caught:
            runner.states()
        assert "not plain JSON data" in caught.value.message


def test_the_weights_of_a_torch_module_are_not_a_state():
    torch = pytest.importorskip("torch")

    class Module(torch.nn.Linear):
        def forward(self, batch):
            return RewardResult([0.0] * len(batch))

    with RewardRunner([active(Module(2, 2))], "weighted_sum", 1) as runner:
        score(runner)
        assert runner.states() == {}


def test_a_reward_from_a_factory_with_a_device_has_its_state():
    def factory(device):
        return Remembering()

    reward = adapt(factory)
    with RewardRunner([active(reward)], "weighted_sum", 1) as runner:
        score(runner)
        assert runner.states() == {"x": {"calls": 1}}
        runner.load_states({"x": {"calls": 4}})
        assert score(runner) == [5, 5]
