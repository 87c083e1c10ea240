"""What a reward remembers: told as JSON, taken up again, in this process and in one of its own."""

import os
import signal

import numpy as np
import pytest
from support.reward_batches import active, faulty, make_batch

from tdmr1_rewards.api import RewardResult
from tdmr1_rewards.errors import Tdmr1Error
from tdmr1_rewards.scoring.failures import RewardFailed
from tdmr1_rewards.scoring.runner import RewardRunner
from tdmr1_rewards.sources.foreign import adapt

pytestmark = pytest.mark.unit


class Remembering:
    """Scores each image by the calls so far."""

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
        assert self.device is not None, "it comes after setup"
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


def test_a_state_is_told_and_taken_up(runner):
    assert runner.states() == {}, "nothing before it is set up"
    score(runner), score(runner)
    told = runner.states()
    assert told == {"x": {"calls": 2}}
    assert score(runner) == [3, 3]
    assert told == {"x": {"calls": 2}}, "a copy"
    runner.load_states(told)
    assert score(runner) == [3, 3]


def test_a_reward_is_set_up_before_it_takes_up_a_state(runner):
    runner.load_states({"x": {"calls": 6}})
    assert score(runner) == [7, 7]


def test_what_is_scored_unremembered_leaves_no_trace(runner):
    with runner.preserving_states():
        assert score(runner) == [1, 1]
        assert score(runner) == [2, 2]
    assert score(runner) == [1, 1]


def test_a_state_of_a_reward_that_is_not_there_is_refused(runner):
    with pytest.raises(Tdmr1Error, match="a state of reward 'gone', and no such reward"):
        runner.load_states({"gone": {}})


def test_a_process_that_is_started_again_goes_on_with_the_last_state_that_was_told():
    with RewardRunner([active(faulty("Remembering"))], "weighted_sum", 1) as runner:
        score(runner), runner.states(), score(runner)
        os.kill(runner._workers[0]._host.pid, signal.SIGKILL)
        with pytest.raises(RewardFailed):
            score(runner)
        assert runner.states() == {"x": {"calls": 1}}
        assert score(runner) == [2, 2]


@pytest.mark.parametrize(
    ("state", "why"),
    [
        ({"seen": {1, 2}}, "Object of type set is not JSON serializable"),
        ({"mean": np.zeros(2)}, "Object of type ndarray is not JSON serializable"),
        ({"mean": float("nan")}, "Out of range float values are not JSON compliant"),
        ({1: "a"}, "it does not come back from JSON as it was"),
        ({"pair": (1, 2)}, "it does not come back from JSON as it was"),
        ([1, 2], "it is a list, not a dict"),
    ],
)
def test_what_is_not_json_is_refused_with_reward_and_distribution(state, why):
    reward = Remembering(state)
    with RewardRunner([active(reward)], "weighted_sum", 1) as runner:
        runner.set_up()
        with pytest.raises(RewardFailed) as caught:
            runner.states()
    said = f"reward 'x' (from foo-dist 1.2) has a state that is not plain JSON data: {why}"
    assert caught.value.message.startswith(said)
    assert "\n" not in caught.value.message


def test_a_process_of_its_own_tells_of_it_too():
    with RewardRunner([active(faulty("Unspeakable"))], "weighted_sum", 1) as runner:
        runner.set_up()
        with pytest.raises(
            RewardFailed, match=r"\(from foo-dist 1.2\) has a state that is not plain JSON data: .* set "
        ):
            runner.states()


def test_the_weights_of_a_torch_module_are_no_state():
    torch = pytest.importorskip("torch")

    class Module(torch.nn.Linear):
        def forward(self, batch):
            return RewardResult([0.0] * len(batch))

    with RewardRunner([active(Module(2, 2))], "weighted_sum", 1) as runner:
        score(runner)
        assert runner.states() == {}


def test_what_a_factory_of_a_device_makes_has_its_state():
    def factory(device):
        return Remembering()

    reward = adapt(factory)
    with RewardRunner([active(reward)], "weighted_sum", 1) as runner:
        score(runner)
        assert runner.states() == {"x": {"calls": 1}}
        runner.load_states({"x": {"calls": 4}})
        assert score(runner) == [5, 5]
