"""Rewards that a Python program gives as objects."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from support.errors import raises

from tdmr1_core.config import RewardConfig, RunConfig
from tdmr1_core.training.python_rewards import match_objects, read_rewards
from tdmr1_rewards.api import RewardResult, RewardSpec
from tdmr1_rewards.calling import session

pytestmark = pytest.mark.unit

SOURCE = session.source_of
SPEC = RewardSpec(name="spec_of_test", summary="", factory="support.objects:anything")


class Bright:
    """A reward object."""

    def __call__(self, batch) -> RewardResult:
        return RewardResult([1.0] * len(batch))


def local_function():
    def bright(images, prompts):
        return [1.0] * len(images)

    return bright


bright = local_function()
dark = lambda images, prompts: [0.0] * len(images)  # noqa: E731


@pytest.mark.parametrize(
    ("reward", "settings"),
    [
        (None, []),
        ("object_count", [{"name": "object_count", "weight": 1.0}]),
        ("count=object_count:0.5", [{"name": "count", "source": "object_count", "weight": 0.5}]),
        (bright, [{"name": "bright", "source": SOURCE("bright")}]),
        (dark, [{"name": "function", "source": SOURCE("function")}]),
        (functools.partial(bright), [{"name": "bright", "source": SOURCE("bright")}]),
        (Bright(), [{"name": "bright", "source": SOURCE("bright")}]),
        (SPEC, [{"name": "spec_of_test", "source": SOURCE("spec_of_test")}]),
        ((bright, 2), [{"name": "bright", "source": SOURCE("bright"), "weight": 2}]),
        (
            {"reward": bright, "name": "sun", "options": {"column": 0}},
            [{"name": "sun", "source": SOURCE("bright"), "options": {"column": 0}}],
        ),
        (RewardConfig(name="object_count", weight=3.0), [{"name": "object_count", "weight": 3.0}]),
        ({"name": "object_count", "weight": 0.1}, [{"name": "object_count", "weight": 0.1}]),
        (
            [("object_count", 1), (dark, -0.5)],
            [{"name": "object_count", "weight": 1}, {"name": "function", "source": SOURCE("function"), "weight": -0.5}],
        ),
    ],
)
def test_the_settings_of_rewards(reward, settings):
    assert list(read_rewards(reward).settings) == settings


def test_a_function_of_a_module_is_not_an_object_of_the_program():
    read = read_rewards(np.mean)
    assert read.settings == ({"name": "mean", "source": "numpy:mean"},)
    assert read.objects == {}


def test_objects_with_one_name_get_numbers():
    other = lambda images, prompts: [1.0] * len(images)  # noqa: E731
    read = read_rewards([dark, other, dark])
    assert [each["name"] for each in read.settings] == ["function", "function_2", "function"]
    assert read.objects == {"function": dark, "function_2": other}


@pytest.mark.parametrize("wrong", [3, object(), [1, 2], {"reward": 4}, {"weight": 2}, {"source": 5}])
def test_other_values_are_no_rewards(wrong):
    with raises("reward-source"):
        read_rewards(wrong)


def _config(*rewards: str) -> RunConfig:
    listed = [{"name": name, "source": SOURCE(name)} for name in rewards]
    return RunConfig.model_validate({"rewards": [{"name": "object_count"}, *listed]})


def test_a_resumed_run_gets_its_objects():
    assert match_objects(_config("bright"), bright) == {"bright": bright}
    assert match_objects(_config("bright"), dark) == {"bright": dark}
    assert match_objects(_config("bright"), ["object_count", bright]) == {"bright": bright}
    assert match_objects(_config("bright", "function"), [dark, bright]) == {"bright": bright, "function": dark}
    assert match_objects(_config(), None) == {}


def test_missing_and_further_objects_are_named():
    with raises("reward-import", rewards=["bright"]):
        match_objects(_config("bright"), None)
    with raises("reward-import", rewards=["dim"]):
        match_objects(_config("bright", "dim"), [bright, dark])
    with raises("option-conflict", rewards=["ocr_match"]):
        match_objects(_config("bright"), [bright, "ocr_match"])
    with raises("option-conflict", rewards=["bright"]):
        match_objects(_config(), bright)


def light(images, prompts):
    return [1.0] * len(images)


def test_a_function_that_is_in_a_module_now_continues_a_run_that_knew_it_as_an_object():
    assert read_rewards(light).objects == {}
    assert match_objects(_config("light"), light) == {"light": light}
    assert match_objects(_config("light", "bright"), [light, bright]) == {"light": light, "bright": bright}


def test_a_reward_without_a_name_is_named_by_its_source():
    (settings,) = read_rewards({"source": "my.py:Score", "weight": 2}).settings
    assert settings == {"source": "my.py:Score", "weight": 2, "name": "score"}
