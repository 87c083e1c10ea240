"""Settings that do nothing are told, and those that undo the run are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from tdmr1_core.algorithm.advantages import group_advantages
from tdmr1_core.config import RunConfig
from tdmr1_core.config_loading import parse_assignments, preset_names, read_preset, resolve
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.lora.metadata import says_alpha
from tdmr1_core.plugins import discover
from tdmr1_core.preflight.checks import check_settings

pytestmark = pytest.mark.unit

FOUND = discover()
ENTRY = FOUND.models.get("tiny-tdm")
DISTILL = ("kind=distill", "rewards=[]", "prompts.train=world")
PEOPLE = ("rewards.0.name=human", "prompts.train=count")


def config(*assignments: str) -> RunConfig:
    return resolve([{"rewards": [{"name": "object_count"}]}, parse_assignments(assignments)])


@pytest.mark.parametrize("preset", [None, *preset_names()])
def test_nothing_is_said_of_what_is_shipped(preset):
    tree = read_preset(preset) if preset else {}
    own = [entry for entry in FOUND.models.entries() if preset in (entry.default_preset, entry.distill_preset)]
    entry = own[0] if preset and own else ENTRY
    rewards = [] if tree.get("kind") == "distill" else [{"name": "human" if preset == "tiny-human" else "object_count"}]
    assert check_settings(resolve([{"rewards": rewards}, tree]), entry, FOUND) == []


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
        ([*DISTILL, "fake.start=zero"], "fake.start has no effect: a distillation starts from no LoRA"),
        ([*DISTILL, "model.lora=x.safetensors"], "model.lora has no effect: a distillation starts from no LoRA"),
        ([*DISTILL, "model.adapter_scale=2"], "model.adapter_scale has no effect: a distillation starts from no"),
        ([*DISTILL, "evaluation.every=5"], "evaluation.every has no effect: no reward judges evaluations"),
        ([*DISTILL, "evaluation.images=5"], "evaluation.images has no effect: no reward judges evaluations"),
        ([*PEOPLE, "evaluation.every=5"], "evaluation.every has no effect: no reward judges evaluations"),
        ([*PEOPLE, "guard.threshold=2"], "guard.threshold has no effect: no reward judges evaluations"),
        (["generator.reward_scale=0", "advantages.permute=true"], "advantages.permute has no effect: generator.reward"),
        (["generator.reward_scale=0", "scoring.combine=normalised"], "scoring.combine has no effect: generator.rew"),
        (["batch.groups=1", "advantages.std=group"], "advantages.std has no effect: the only group is the whole batch"),
        (
            ["batch.groups=2", "batch.group_size=9", "advantages.clip=4"],
            "advantages.clip has no effect: no advantage of 2 groups of 9 is above 4",
        ),
        (["advantages.std=group", "advantages.clip=4.8"], "advantages.clip has no effect: no advantage of 48 groups"),
        (["advantages.binary=true", "advantages.clip=0.5"], "advantages.clip has no effect: advantages.binary keeps"),
        (["advantages.std=group", "scoring.combine=normalised"], "scoring.combine has no effect: a single reward"),
        (["timesteps.optimizer_step=each", "timesteps.per_iteration=1"], "timesteps.optimizer_step has no effect: an"),
        (["model.alpha=3"], "model.alpha has no effect: the LoRA that the run starts from says its own"),
        (["model.device=cpu", "memory.trajectories=cpu"], "memory.trajectories has no effect: model.device is cpu"),
        (["model.device=cpu", "memory.text_encoders=cpu"], "memory.text_encoders has no effect: model.device is cpu"),
        (["evaluation.rewards=[{name: geneval, weight: 2}]"], "evaluation.rewards.0.weight has no effect: every rew"),
        (["guard.rewards=[{name: geneval, weight: 2}]"], "guard.rewards.0.weight has no effect: every reward is"),
        (["evaluation.every=1000"], "evaluation.every has no effect: the run has 1000 iterations"),
        (["iterations=1", "optimizer.final_lr=0.5"], "optimizer.final_lr has no effect"),
        (["surrogate.trust_region=1"], "surrogate.trust_region holds back preferred images alone: no ratio is below 1"),
        (["surrogate.trust_region=1e6"], "surrogate.trust_region can hardly bind: its ratio needs a loss 13.8 below"),
    ],
)
def test_a_setting_without_effect_is_told(assignments, told):
    (sentence,) = check_settings(config(*assignments), ENTRY, FOUND)
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
        (["guard.stop=true", "evaluation.every=2", "iterations=2"], "none before the end", "less than the 2 iter"),
        (
            ["guard.stop=true", "evaluation.every=1", "evaluation.images=3"],
            "evaluations draw 6 images, and the guard needs 8",
            "raise evaluation.images",
        ),
        (["timesteps.per_iteration=5"], "per_iteration is 5 but there are only 4 steps", "to 4 or less"),
        ([*DISTILL, "timesteps.per_iteration=5"], "per_iteration is 5 but there are only 4 steps", "to 4 or less"),
        (["rewards.0.weight=0", "generator.trunc_steps=0"], "2 settings undo one another", "give one a weight; "),
    ],
)
def test_settings_that_undo_the_run_are_refused(assignments, told, hint):
    with pytest.raises(Tdmr1Error, match=told) as caught:
        check_settings(config(*assignments), ENTRY, FOUND)
    assert hint in caught.value.hint


def test_a_list_without_names_needs_its_rank(tmp_path):
    (tmp_path / "lora.ckpt").touch()
    named = config(f"model.lora={tmp_path / 'lora.ckpt'}", "model.rank=8", "model.alpha=16", "batch.micro_batch=auto")
    assert check_settings(named, FOUND.entry(named.model), FOUND) == []


@pytest.mark.parametrize(
    "assignments",
    [
        ["surrogate.trust_region=0.9"],
        ["generator.reward_scale=0", "generator.tdm_weight=0.5", "generator.trunc_steps=3"],  # the KL has them still
        ["scoring.combine=normalised"],  # each group by itself, where deviations are those of the batch
        ["batch.groups=2", "batch.group_size=9", "advantages.clip=3.9"],
        ["timesteps.optimizer_step=each", "timesteps.per_iteration=1", "fake.updates=2"],
        ["memory.trajectories=cpu", "memory.text_encoders=cpu"],
        [*DISTILL, "model.rank=8", "model.alpha=8", "evaluation.seed=3"],
        [*DISTILL, "evaluation.rewards=[{name: object_count}]", "evaluation.every=5", "evaluation.images=5"],
        [*PEOPLE, "evaluation.rewards=[{name: object_count}]", "evaluation.every=5", "guard.threshold=2"],
    ],
)
def test_what_still_has_an_effect_is_not_told(assignments):
    assert check_settings(config(*assignments), ENTRY, FOUND) == []


def test_the_largest_advantages_are_as_large_as_told():
    """One reward that differs in one of two groups of nine: sqrt(2 * 8), less the floor of the deviation."""
    rewards = torch.zeros(18, dtype=torch.float64)
    rewards[0] = 9e6
    rewards[:9] -= 1e6
    found = group_advantages(rewards, torch.ones(18, dtype=torch.bool), 9, clip=99.0)
    assert found.max().item() == pytest.approx(4, rel=1e-6)
    alone = group_advantages(rewards[:9], torch.ones(9, dtype=torch.bool), 9, std="group", clip=99.0)
    assert alone.max().item() == pytest.approx(8**0.5, rel=1e-6)


def test_a_base_that_takes_few_steps_has_no_lora_to_be_scaled_or_copied():
    told = check_settings(config("model.adapter_scale=2", "fake.start=zero"), replace(ENTRY, lora=None), FOUND)
    assert told == [
        f"{name} has no effect: the run starts from no LoRA" for name in ("model.adapter_scale", "fake.start")
    ]


def test_a_single_step_leaves_less_to_choose():
    once = ("rollout.steps=1", "timesteps.per_iteration=1", "generator.trunc_steps=1")
    changed = ("timesteps.k_sharing=group", "surrogate.boundary=last", "surrogate.time_weight=false")
    told = check_settings(config(*once, *changed), ENTRY, FOUND)
    assert [sentence.partition(" ")[0] for sentence in told] == [name.partition("=")[0] for name in changed]


@pytest.mark.parametrize("place", ["train", "evaluate"])
def test_prompts_that_are_not_there_are_refused_with_the_settings(place):
    with pytest.raises(Tdmr1Error, match="there is no prompt set 'nosuch' for tiny models"):
        check_settings(config(f"prompts.{place}=nosuch"), ENTRY, FOUND)


def test_alpha_is_told_by_metadata_neighbours_and_tensors(tmp_path):
    tensors = {"a.lora_A.weight": torch.zeros(2, 2)}
    save_file(tensors, tmp_path / "kohya.safetensors", metadata={"ss_network_alpha": "4"})
    save_file({**tensors, "a.alpha": torch.tensor(4.0)}, tmp_path / "own.safetensors")
    save_file(tensors, tmp_path / "silent.safetensors")
    assert [says_alpha(tmp_path / f"{name}.safetensors") for name in ("kohya", "own", "silent")] == [True, True, False]
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 8}')
    assert says_alpha(tmp_path / "silent.safetensors")
    (tmp_path / "damaged.safetensors").write_bytes(b"no")
    assert not says_alpha(tmp_path / "damaged.safetensors")
    assert not says_alpha(tmp_path / "absent.safetensors")


def test_controls_are_no_contradictions():
    assert check_settings(config("generator.reward_scale=0", "generator.trunc_steps=0"), ENTRY, FOUND) == []
    assert check_settings(config("guard.stop=true", "evaluation.every=5"), ENTRY, FOUND) == []
