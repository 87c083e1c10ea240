"""Scorers that are torch modules, or have some as attributes."""

import functools
import subprocess
import sys

import pytest
import torch
from support.paths import ROOT
from support.reward_batches import active, make_batch

from tdmr1_rewards.api import RewardResult
from tdmr1_rewards.calling.torch_modules import prepare_modules
from tdmr1_rewards.scoring.runner import RewardRunner
from tdmr1_rewards.sources.foreign import adapt

pytestmark = pytest.mark.unit


class Net(torch.nn.Module):
    """Half of its answers are zero in training mode."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, pixels):
        return self.dropout(self.weight * pixels.mean((1, 2, 3)))


class ModuleScorer(Net):
    def score(self, pixels, prompts):
        assert not torch.is_grad_enabled()
        return self(pixels)


class WithAttribute:
    def __init__(self):
        self.net = Net()

    def __call__(self, images, prompts, metadata):
        assert not torch.is_grad_enabled()
        return self.net(images)


class NativeModule(Net):
    def __call__(self, batch):
        assert not torch.is_grad_enabled()
        return RewardResult(list(self.forward(torch.tensor(batch.images).float() / 255).tolist()))


class NativeWithAttribute:
    def __init__(self):
        self.net = Net()

    def __call__(self, batch):
        return RewardResult(self.net(torch.tensor(batch.images).float() / 255).tolist())


class WithContainers:
    def __init__(self):
        self.nets = {"first": [Net()]}

    def __call__(self, images, prompts, metadata):
        return self.nets["first"][0](images)


class WithHelper:
    """Has an object that has the module, like the inferencer of a reward model."""

    def __init__(self):
        self.helper = WithAttribute()

    def __call__(self, images, prompts, metadata):
        return self.helper.net(images)


def closure():
    scorer = WithAttribute()
    return lambda images, prompts, metadata: scorer.net(images)


GLOBAL_NET = Net()


def of_global(images, prompts, metadata):
    return GLOBAL_NET(images)


def with_argument(net, images, prompts, metadata):
    return net(images)


def maker(device):
    return ModuleScorer()


def native_maker(device):
    return NativeModule()


@pytest.mark.parametrize(
    "target",
    [
        ModuleScorer,
        ModuleScorer(),
        ModuleScorer().score,
        WithAttribute,
        WithContainers,
        WithHelper,
        closure,
        of_global,
        functools.partial(with_argument, Net()),
        maker,
        native_maker,
        NativeModule(),
        NativeWithAttribute(),
    ],
)
def test_a_module_is_in_evaluation_mode_and_called_without_gradients(target):
    expected = [i / 255 for i in range(16)]
    with RewardRunner([active(adapt(target))], "weighted_sum", 1) as runner:
        for _ in range(2):
            scores = runner.score(make_batch(*["a"] * 16)).per_reward["x"]
            assert scores == pytest.approx(expected)


@pytest.mark.parametrize("make", [ModuleScorer, WithAttribute])
def test_a_module_moves_to_the_device_of_the_reward(make):
    scorer = make()
    adapt(scorer).setup("meta")
    assert getattr(scorer, "net", scorer).weight.device.type == "meta"


def test_modules_that_a_scorer_only_refers_to_move_too():
    containers, helper = WithContainers(), WithHelper()
    for scorer, net in ((containers, containers.nets["first"][0]), (helper, helper.helper.net)):
        adapt(scorer).setup("meta")
        assert net.weight.device.type == "meta"


def test_a_helper_with_a_device_of_its_own_keeps_its_module():
    scorer = WithHelper()
    scorer.helper.device = "cpu"
    prepare_modules(scorer, "meta")
    assert (scorer.helper.net.weight.device.type, scorer.helper.net.training) == ("cpu", False)


def test_objects_that_refer_to_one_another_end_the_search():
    scorer = WithAttribute()
    scorer.me = [scorer, {"me": scorer}]
    prepare_modules(scorer)
    assert not scorer.net.training


def test_a_scorer_with_a_device_of_its_own_stays_where_it_is():
    scorer = ModuleScorer()
    scorer.device = torch.device("cpu")
    prepare_modules(scorer, "meta")
    assert (scorer.weight.device.type, scorer.training) == ("cpu", False)


def test_a_module_with_a_device_map_stays_where_it_is():
    scorer = WithAttribute()
    scorer.net.hf_device_map = {"": "cpu"}
    prepare_modules(scorer, "meta")
    assert (scorer.net.weight.device.type, scorer.net.training) == ("cpu", False)


def test_a_native_reward_with_a_setup_prepares_its_modules_itself():
    class Own(NativeWithAttribute):
        def setup(self, device):
            self.net.train()

    reward = Own()
    with RewardRunner([active(reward)], "weighted_sum", 1) as runner:
        runner.set_up()
        assert reward.net.training


def test_a_reward_without_torch_does_not_import_it():
    code = """
import sys
from PIL import Image
from tdmr1_rewards import RewardBatch, RewardContext, RewardResult
from tdmr1_rewards.calling.thread import ThreadHost
from tdmr1_rewards.sources.foreign import adapt

class Plain:
    def __call__(self, prompt, image):
        return 1.0

batch = RewardBatch([Image.new("RGB", (2, 2))], ["a"], [{}], [0], [0], RewardContext(None, 0, 0))
host = ThreadHost(adapt(Plain), "array")
host.setup("cpu")
assert host.call(batch).scores == [1.0]
host.close()
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "False"
