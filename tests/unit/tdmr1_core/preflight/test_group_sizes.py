"""Rewards that compare images of a prompt are refused where evaluations sample one image for a prompt."""

from __future__ import annotations

import json
import sys

import pytest
from support.errors import raises
from support.reward_server import serving
from support.runs import Silent, small_config

from tdmr1_core.plugins import discover
from tdmr1_core.preflight.group_sizes import EvaluationSize, Names, reject_single_images
from tdmr1_core.preflight.resolved import resolve_run
from tdmr1_core.prompts.prompt import Prompt
from tdmr1_core.prompts.sets import PromptSet, spread
from tdmr1_core.runs.run import Run
from tdmr1_rewards.api import RewardResult, RewardSpec
from tdmr1_rewards.serving.server import build_app

pytestmark = pytest.mark.unit

FOUND = discover()
RELATIVE = """
from tdmr1_rewards import RewardResult, RewardSpec

SPEC = RewardSpec(name="relative", summary="", factory="relative:score", groupwise=True)

def score(batch):
    return RewardResult([0.0] * len(batch))
"""
TOKEN = "a-token-for-tests"
SINGLE = {"reward": "relative", "setting": "evaluation.images_per_prompt"}


@pytest.fixture
def relative(tmp_path):
    """The settings of a reward that compares images, in a file."""
    (tmp_path / "relative.py").write_text(RELATIVE)
    return {"name": "relative", "source": f"{tmp_path}/relative.py:SPEC"}


def resolve(*assignments, rewards):
    return resolve_run(small_config("evaluation.rewards=[]", *assignments, rewards=rewards), FOUND)


@pytest.mark.parametrize(
    ("assignments", "values"),
    [
        ([], {"found": None, "images": 4, "prompts": "count"}),
        (["evaluation.images=36"], {"found": None, "images": 36, "prompts": "count"}),
        (["evaluation.images_per_prompt=1", "evaluation.images=256"], {"found": 1, "images": 256}),
        (["prompts.evaluate=world", "evaluation.images=256"], {"found": None, "prompts": "world"}),
    ],
)
def test_a_trained_reward_that_compares_images_is_refused(relative, assignments, values):
    with raises("setting-conflict", **SINGLE, **values) as caught:
        resolve(*assignments, rewards=[relative])
    assert "evaluation.images_per_prompt" in caught.value.hint
    assert "evaluation.rewards" in caught.value.hint
    assert "one image" in caught.value.message or "evaluation.images_per_prompt is 1" in caught.value.message


@pytest.mark.parametrize("settings", [{"isolated": True}, {"python": sys.executable}])
def test_it_is_refused_too_in_another_process(relative, settings):
    with raises("setting-conflict", **SINGLE):
        resolve(rewards=[{**relative, **settings}])


@pytest.mark.parametrize(
    "assignments",
    [
        ["evaluation.images_per_prompt=2"],
        ["evaluation.images=72"],
        ["evaluation.images_per_prompt=24", "evaluation.images=1"],
        ["evaluation.rewards=[{name: jpeg_size}]"],
    ],
)
def test_it_is_accepted_if_evaluations_sample_groups_or_use_other_rewards(relative, assignments):
    assert resolve(*assignments, rewards=[relative]).rewards[0].registered.spec.groupwise


def test_rewards_of_evaluations_and_of_the_guard_are_checked(relative):
    others = [{"name": "jpeg_size"}]
    with raises("setting-conflict", **SINGLE):
        resolve(f"evaluation.rewards=[{json.dumps(relative)}]", rewards=others)
    with raises("setting-conflict", **SINGLE) as caught:
        resolve(f"guard.rewards=[{json.dumps(relative)}]", rewards=others)
    assert "guard.rewards" in caught.value.hint
    resolve(f"guard.rewards=[{json.dumps(relative)}]", "guard.enabled=false", rewards=others)


def test_a_command_without_evaluations_accepts_it(relative):
    resolved = resolve_run(small_config("evaluation.rewards=[]", rewards=[relative]), FOUND, evaluates=False)
    assert [reward.registered.spec.groupwise for reward in resolved.rewards] == [True]


def test_prompts_that_it_does_not_score_do_not_count():
    spec = {"relative": RewardSpec(name="relative", summary="", factory="a:b", groupwise=True)}
    prompts = (Prompt("a", {"rewards": ["other"]}), Prompt("b", {"rewards": ["other"]}))
    reject_single_images(spec, [PromptSet("p", prompts)], EvaluationSize(2, None), Names())
    with raises("setting-conflict", reward="relative", prompts="q"):
        reject_single_images(spec, [PromptSet("q", (*prompts, Prompt("c", {})))], EvaluationSize(3, None), Names())


@pytest.mark.parametrize("role", ["rewards", "guard.rewards"])
def test_a_reward_on_a_server_is_refused_after_its_set_up(tmp_path, monkeypatch, role):
    """The folder of the run is not opened: no image was sampled."""
    monkeypatch.setenv("TDMR1_REWARD_TOKEN", TOKEN)
    spec = RewardSpec(name="relative", summary="", factory="a:b", groupwise=True, image_format="array")
    with serving(build_app(lambda batch: RewardResult([0.0] * len(batch)), spec, TOKEN)) as address:
        remote = {"name": "relative", "source": f"remote:{address}/relative", "options": {"patience": 0}}
        if role == "rewards":
            config = small_config("evaluation.rewards=[]", rewards=[remote])
        else:
            config = small_config(f"guard.rewards=[{json.dumps(remote)}]")
        with raises("setting-conflict", **SINGLE, images=4):
            Run.create(config, tmp_path / "run", FOUND).execute(Silent())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("prompts", "images", "per_prompt", "expected"),
    [
        (4, 8, None, ("abcd", 2)),
        (4, 6, None, ("abcd", 2)),
        (4, 2, None, ("ac", 1)),
        (4, 8, 4, ("ac", 4)),
        (4, 8, 2, ("abcd", 2)),
        (4, 100, 2, ("abcd", 2)),
        (4, 1, 3, ("a", 3)),
        (4, 7, 2, ("abc", 2)),
    ],
)
def test_prompts_are_spread_over_the_images(prompts, images, per_prompt, expected):
    chosen, each = spread([Prompt(letter, {}) for letter in "abcd"[:prompts]], images, per_prompt)
    assert ("".join(prompt.text for prompt in chosen), each) == expected
