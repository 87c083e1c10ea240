"""Settings that do nothing are told, and those that undo the run are refused."""

from __future__ import annotations

import pytest

from tdmr1_core.config import RunConfig
from tdmr1_core.configure import parse_assignments, preset_names, read_preset, resolve
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.idle import check_settings
from tdmr1_core.models.registry import ModelRegistry
from tdmr1_core.plugins import discover

pytestmark = pytest.mark.unit

ENTRY, REWARDS = ModelRegistry().get("tiny-tdm"), discover().plugins.rewards
DISTILL = ("kind=distill", "rewards=[]")


def config(*assignments: str) -> RunConfig:
    return resolve([{"rewards": [{"name": "object_count"}]}, parse_assignments(assignments)])


@pytest.mark.parametrize("preset", [None, *preset_names()])
def test_nothing_is_said_of_what_is_shipped(preset):
    tree = read_preset(preset) if preset else {}
    rewards = [] if tree.get("kind") == "distill" else [{"name": "object_count"}]
    settings = resolve([{"rewards": rewards}, tree])
    assert check_settings(settings, ENTRY, REWARDS) == []


@pytest.mark.parametrize(
    ("assignments", "told"),
    [
        (["generator.trunc_steps=6"], "generator.trunc_steps has no effect: 6 means all steps, and there are 4"),
        (["rollout.steps=3"], "generator.trunc_steps has no effect: 4 means all steps, and there are 3"),
        (["generator.huber_c=0.1"], "generator.huber_c has no effect: generator.loss is squared"),
        (["surrogate.trust_region=null", "surrogate.ema_max=0.1"], "surrogate.ema_max has no effect: neither"),
        (["surrogate.boundary=last", "surrogate.time_weight=false"], "surrogate.time_weight has no effect"),
        (["advantages.binary=true", "advantages.std=group"], "advantages.std has no effect"),
        (["advantages.binary=true", "advantages.clip=3"], "advantages.clip has no effect"),
        (["rollout.eta=0.5", "rollout.sampler=dpm-solver++"], "rollout.eta has no effect: dpm-solver++ adds no noise"),
        (["batch.micro_batch=5000"], "batch.micro_batch has no effect: an iteration has 1152 images"),
        (["rewards.0.weight=2"], "rewards.0.weight has no effect"),
        (["evaluation.every=5000"], "evaluation.every has no effect: the run has 1000 iterations"),
        (["guard.enabled=false", "guard.threshold=2"], "guard.threshold has no effect: guard.enabled is off"),
        (["model.rank=8"], "model.rank has no effect: the LoRA that the run starts from has its own"),
        (["generator.reward_scale=0", "surrogate.updates=1", "surrogate.beta_dpo=3"], "surrogate.beta_dpo has no"),
        (
            ["generator.reward_scale=0", "generator.rl_cfg=3"],
            "generator.rl_cfg has no effect: generator.reward_scale is 0",
        ),
        (["generator.reward_scale=0", "generator.tau_min=0.1"], "generator.tau_min has no effect"),
        ([*DISTILL, "generator.reward_scale=2"], "generator.reward_scale has no effect: a distillation has no rewards"),
        ([*DISTILL, "generator.tdm_weight=0.5"], "generator.tdm_weight has no effect: a distillation"),
        ([*DISTILL, "generator.trunc_steps=3"], "generator.trunc_steps has no effect: a distillation"),
        ([*DISTILL, "advantages.clip=3"], "advantages.clip has no effect: a distillation has no rewards"),
    ],
)
def test_a_setting_without_effect_is_told(assignments, told):
    (sentence,) = check_settings(config(*assignments), ENTRY, REWARDS)
    assert sentence.startswith(told)


@pytest.mark.parametrize(
    ("assignments", "told", "hint"),
    [
        (["rewards.0.weight=0"], "every reward has weight 0", "give one a weight"),
        (["generator.trunc_steps=0"], "no step gets the reward", "generator.reward_scale=0"),
        (["generator.tdm_weight=1"], "leaves the reward a weight of 0", "generator.reward_scale=0"),
        (["surrogate.ema_max=0"], "surrogate.trust_region can never bind", "surrogate.trust_region=null"),
        (["guard.stop=true"], "guard.stop can stop nothing", "set evaluation.every"),
        (
            ["guard.stop=true", "evaluation.every=5", "evaluation.rewards=[{name: jpeg_size}]"],
            "judge none of the trained rewards",
            "evaluation.rewards",
        ),
        (["guard.stop=true", "guard.enabled=false"], "guard.enabled is off", "drop one"),
        (["rewards.0.weight=0", "generator.trunc_steps=0"], "2 settings undo one another", "give one a weight; "),
    ],
)
def test_settings_that_undo_the_run_are_refused(assignments, told, hint):
    with pytest.raises(Tdmr1Error, match=told) as caught:
        check_settings(config(*assignments), ENTRY, REWARDS)
    assert hint in caught.value.hint


def test_a_list_without_names_needs_its_rank(tmp_path):
    (tmp_path / "lora.ckpt").touch()
    named = config(f"model.lora={tmp_path / 'lora.ckpt'}", "model.rank=8", "model.alpha=16", "batch.micro_batch=auto")
    assert check_settings(named, ENTRY, REWARDS) == []


def test_what_still_has_an_effect_is_not_told():
    """Preferred images have ratios above 1 to clip; without a reward the KL still has its own weights by step."""
    assert check_settings(config("surrogate.trust_region=1.5"), ENTRY, REWARDS) == []
    without = ("generator.reward_scale=0", "generator.tdm_weight=0.5", "generator.trunc_steps=3")
    assert check_settings(config(*without), ENTRY, REWARDS) == []


def test_controls_are_no_contradictions():
    assert check_settings(config("generator.reward_scale=0", "generator.trunc_steps=0"), ENTRY, REWARDS) == []
    assert check_settings(config("guard.stop=true", "evaluation.every=5"), ENTRY, REWARDS) == []
