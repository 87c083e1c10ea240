"""The function `preflight` of a reward: its answers, and answers that are refused."""

import sys

import pytest
from support.errors import raises

from tdmr1_rewards import RewardSpec
from tdmr1_rewards.errors import Tdmr1Error
from tdmr1_rewards.registry import Provenance, RegisteredReward
from tdmr1_rewards.sources.source import preflight

pytestmark = pytest.mark.unit


def registered(**fields):
    spec = RewardSpec(name="own", summary="", factory="a:b", default_prompts="", **fields)
    return RegisteredReward(spec, Provenance("own", "1", None, "own"))


def answering(monkeypatch, answer):
    """A reward whose preflight function returns or raises `answer`; the previews that it got."""
    previews = []

    def function(preview):
        previews.append(preview)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(sys.modules[__name__], "asked", function, raising=False)
    monkeypatch.setitem(sys.modules, "own_preflight", sys.modules[__name__])
    return registered(preflight="own_preflight:asked"), previews


def test_without_a_function_every_prompt_can_be_scored():
    assert preflight(registered(), None, ["a", "b"], [{}, {}]) == [None, None]


def test_the_function_gets_prompts_and_metadata(monkeypatch):
    reward, previews = answering(monkeypatch, [None, "it is red"])
    assert preflight(reward, None, ["a", "b"], [{}, {"n": 1}]) == [None, "it is red"]
    (preview,) = previews
    assert (preview.prompts, preview.metadata, preview.options) == (["a", "b"], [{}, {"n": 1}], None)


@pytest.mark.parametrize(
    ("answer", "found"), [([None], "a list of 1"), ("ab", "a str"), (None, "a NoneType"), ([1, 2], "a list of 2")]
)
def test_another_answer_is_refused(monkeypatch, answer, found):
    reward, _ = answering(monkeypatch, answer)
    with raises("reward-spec", field="preflight", found=found, prompts=2):
        preflight(reward, None, ["a", "b"], [{}, {}])


def test_errors_of_the_function(monkeypatch):
    reward, _ = answering(monkeypatch, OSError("no disk"))
    with raises("reward-failed", error="OSError: no disk"):
        preflight(reward, None, ["a"], [{}])
    reward, _ = answering(monkeypatch, Tdmr1Error("too few", code="feedback-empty"))
    with raises("feedback-empty"):
        preflight(reward, None, ["a"], [{}])
    with raises("reward-import"):
        preflight(registered(preflight="no_module_of_this_name:f"), None, ["a"], [{}])
