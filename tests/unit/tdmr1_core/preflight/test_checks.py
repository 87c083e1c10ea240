"""Ineffective settings are reported, and contradictory settings are rejected."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from support.errors import raises

from tdmr1_core.algorithm.advantages import group_advantages
from tdmr1_core.config import RunConfig
from tdmr1_core.config_loading import parse_assignments, preset_names, read_preset, resolve
from tdmr1_core.models.lora.metadata import has_alpha
from tdmr1_core.models.registry import ModelEntry
from tdmr1_core.plugins import discover
from tdmr1_core.preflight.resolved import resolve_run

pytestmark = pytest.mark.unit

FOUND = discover()
ENTRY = FOUND.models.get("tiny-tdm")
DISTILL = ("kind=distill", "rewards=[]", "prompts.train=world")
PEOPLE = ("rewards.0.name=human", "prompts.train=count")


def config(*assignments: str) -> RunConfig:
    return resolve([{"rewards": [{"name": "object_count"}]}, parse_assignments(assignments)])


def ineffective(config: RunConfig, entry: ModelEntry = ENTRY) -> dict[str, str]:
    """The ineffective settings that are reported, with the reason."""
    warnings = resolve_run(config, FOUND, entry=entry).warnings
    assert {warning.code for warning in warnings} <= {"setting-ineffective", "images-unscored"}
    found = [warning.values for warning in warnings if warning.code == "setting-ineffective"]
    return {values["setting"]: values["reason"] for values in found}


@pytest.mark.parametrize("preset", [None, *preset_names()])
def test_presets_have_no_ineffective_settings(preset):
    tree = read_preset(preset) if preset else {}
    own = [entry for entry in FOUND.models.entries() if preset in (entry.default_preset, entry.distill_preset)]
    entry = own[0] if preset and own else ENTRY
    rewards = [] if tree.get("kind") == "distill" else [{"name": "human" if preset == "tiny-human" else "object_count"}]
    assert ineffective(resolve([{"rewards": rewards}, tree]), entry) == {}


@pytest.mark.parametrize(
    ("assignments", "setting", "reason"),
    [
        (["generator.trunc_steps=6"], "generator.trunc_steps", "6 means all steps, and there are 4"),
        (["rollout.steps=3"], "generator.trunc_steps", "4 means all steps, and there are 3"),
        (["generator.huber_c=0.1"], "generator.huber_c", "generator.loss is squared"),
        (["surrogate.trust_region=null", "surrogate.ema_max=0.1"], "surrogate.ema_max", "uses the EMA"),
        (["surrogate.boundary=last", "surrogate.time_weight=false"], "surrogate.time_weight", "last boundary"),
        (["advantages.binary=true", "advantages.std=group"], "advantages.std", "uses the sign only"),
        (["advantages.binary=true", "advantages.clip=3"], "advantages.clip", "uses the sign only"),
        (["rollout.eta=0.5", "rollout.sampler=dpm-solver++"], "rollout.eta", "dpm-solver++ adds no noise"),
        (["rollout.dpm_levels=euler"], "rollout.dpm_levels", "only the sampler dpm-solver++ uses it"),
        (["batch.teaching_floor=0.5"], "batch.teaching_floor", "batch.prompts is uniform"),
        (["batch.micro_batch=5000"], "batch.micro_batch", "an iteration has 1152 images"),
        (["rewards.0.weight=2"], "rewards.0.weight", "normalization removes its scale"),
        (["evaluation.every=5000"], "evaluation.every", "the run has 1000 iterations"),
        (["evaluation.every=1000"], "evaluation.every", "the run has 1000 iterations"),
        (["guard.enabled=false", "guard.threshold=2"], "guard.threshold", "guard.enabled is off"),
        (["model.rank=8"], "model.rank", "the few-step LoRA file stores its rank"),
        (["model.alpha=3"], "model.alpha", "the few-step LoRA file stores its alpha"),
        (["generator.reward_scale=0", "surrogate.beta_dpo=3"], "surrogate.beta_dpo", "reward_scale is 0"),
        (["generator.reward_scale=0", "generator.rl_cfg=3"], "generator.rl_cfg", "reward_scale is 0"),
        (["generator.reward_scale=0", "generator.tau_min=0.1"], "generator.tau_min", "reward_scale is 0"),
        (["generator.reward_scale=0", "advantages.permute=true"], "advantages.permute", "reward_scale is 0"),
        (["generator.reward_scale=0", "scoring.combine=normalised"], "scoring.combine", "reward_scale is 0"),
        ([*DISTILL, "generator.reward_scale=2"], "generator.reward_scale", "a distillation has no rewards"),
        ([*DISTILL, "generator.tdm_weight=0.5"], "generator.tdm_weight", "a distillation has no rewards"),
        ([*DISTILL, "generator.trunc_steps=3"], "generator.trunc_steps", "a distillation has no rewards"),
        ([*DISTILL, "advantages.clip=3"], "advantages.clip", "a distillation has no rewards"),
        ([*DISTILL, "fake.start=generator"], "fake.start", "a distillation starts from no LoRA"),
        ([*DISTILL, "model.lora=x.safetensors"], "model.lora", "a distillation starts from no LoRA"),
        ([*DISTILL, "model.adapter_scale=2"], "model.adapter_scale", "a distillation starts from no LoRA"),
        ([*DISTILL, "evaluation.every=5"], "evaluation.every", "no reward scores evaluations"),
        ([*DISTILL, "evaluation.images=5"], "evaluation.images", "no reward scores evaluations"),
        ([*PEOPLE, "evaluation.every=5"], "evaluation.every", "no reward scores evaluations"),
        ([*PEOPLE, "guard.threshold=2"], "guard.threshold", "no reward scores evaluations"),
        (["batch.groups=1", "advantages.std=group"], "advantages.std", "the only group is the whole batch"),
        (
            ["batch.groups=2", "batch.group_size=9", "advantages.clip=4"],
            "advantages.clip",
            "no advantage of 2 groups of 9 images is above 4",
        ),
        (["advantages.std=group", "advantages.clip=4.8"], "advantages.clip", "no advantage of 48 groups"),
        (["advantages.binary=true", "advantages.clip=0.5"], "advantages.clip", "uses the sign only"),
        (["advantages.std=group", "scoring.combine=normalised"], "scoring.combine", "with a single reward"),
        (
            ["timesteps.optimizer_step=each", "timesteps.per_iteration=1"],
            "timesteps.optimizer_step",
            "an iteration has one update",
        ),
        (["model.device=cpu", "memory.trajectories=cpu"], "memory.trajectories", "model.device is cpu"),
        (["model.device=cpu", "memory.text_encoders=cpu"], "memory.text_encoders", "model.device is cpu"),
        (
            ["evaluation.rewards=[{name: geneval, weight: 2}]"],
            "evaluation.rewards.0.weight",
            "every reward is reported separately",
        ),
        (["guard.rewards=[{name: geneval, weight: 2}]"], "guard.rewards.0.weight", "reported separately"),
        (["iterations=1", "optimizer.final_lr=0.5"], "optimizer.final_lr", "from the second iteration on"),
        (["surrogate.trust_region=1"], "surrogate.trust_region", "limits preferred images only"),
        (["surrogate.trust_region=1e6"], "surrogate.trust_region", "must be 13.8 below"),
    ],
)
def test_an_ineffective_setting_is_reported_alone_with_its_reason(assignments, setting, reason):
    found = ineffective(config(*assignments))
    assert list(found) == [setting]
    assert reason in found[setting]


@pytest.mark.parametrize(
    ("assignments", "problem", "hint"),
    [
        (["rewards.0.weight=0"], "every reward has weight 0", "a weight"),
        (["generator.trunc_steps=0"], "generator.trunc_steps", "generator.reward_scale=0"),
        (["generator.tdm_weight=1"], "generator.tdm_weight", "generator.reward_scale=0"),
        (["surrogate.ema_max=0"], "surrogate.trust_region", "surrogate.trust_region=null"),
        (["guard.stop=true"], "guard.stop", "set evaluation.every"),
        (
            ["guard.stop=true", "evaluation.every=5", "evaluation.rewards=[{name: jpeg_size}]"],
            "evaluations score none of the trained rewards",
            "evaluation.rewards",
        ),
        (["guard.stop=true", "guard.enabled=false"], "guard.enabled is off", "set guard.enabled=true"),
        (["guard.stop=true", "evaluation.every=2", "iterations=2"], "between start and end", "from 1 to 1"),
        (
            ["guard.stop=true", "evaluation.every=1", "evaluation.images=3"],
            "evaluations draw 6 images, but the guard needs 8",
            "raise evaluation.images",
        ),
        (["timesteps.per_iteration=5"], "timesteps.per_iteration is 5, but there are only 4", "to 4 or less"),
        ([*DISTILL, "timesteps.per_iteration=5"], "timesteps.per_iteration is 5, but there are", "to 4 or less"),
    ],
)
def test_contradictory_settings_are_rejected(assignments, problem, hint):
    with raises("setting-conflict") as caught:
        resolve_run(config(*assignments), FOUND, entry=ENTRY)
    (found,) = caught.value.values["problems"]
    assert problem in found
    assert hint in caught.value.hint


def test_all_contradictions_are_reported_at_once():
    with raises("setting-conflict") as caught:
        resolve_run(config("rewards.0.weight=0", "generator.trunc_steps=0"), FOUND, entry=ENTRY)
    assert len(caught.value.values["problems"]) == 2


def test_rank_and_alpha_are_effective_for_a_lora_file_that_does_not_store_them(tmp_path):
    (tmp_path / "lora.ckpt").touch()
    named = config(f"model.lora={tmp_path / 'lora.ckpt'}", "model.rank=8", "model.alpha=16", "batch.micro_batch=auto")
    assert ineffective(named, FOUND.entry(named.model)) == {}


@pytest.mark.parametrize(
    "assignments",
    [
        ["surrogate.trust_region=0.9"],
        ["generator.reward_scale=0", "generator.tdm_weight=0.5", "generator.trunc_steps=3"],  # the KL has them still
        ["scoring.combine=normalised"],  # each group by itself, where deviations are those of the batch
        ["batch.groups=2", "batch.group_size=9", "advantages.clip=3.9"],
        ["timesteps.optimizer_step=each", "timesteps.per_iteration=1", "fake.updates=2"],
        ["memory.trajectories=cpu", "memory.text_encoders=cpu"],
        ["model.device=cpu", "memory.text_encoders=device"],
        [*DISTILL, "model.rank=8", "model.alpha=8", "evaluation.seed=3"],
        [*DISTILL, "evaluation.rewards=[{name: object_count}]", "evaluation.every=5", "evaluation.images=5"],
        [*PEOPLE, "evaluation.rewards=[{name: object_count}]", "evaluation.every=5", "guard.threshold=2"],
    ],
)
def test_an_effective_setting_is_not_reported(assignments):
    assert ineffective(config(*assignments)) == {}


def test_the_largest_advantage_is_the_one_that_the_check_assumes():
    """One reward that differs in one of two groups of nine: sqrt(2 * 8), less the floor of the deviation."""
    rewards = torch.zeros(18, dtype=torch.float64)
    rewards[0] = 9e6
    rewards[:9] -= 1e6
    found = group_advantages(rewards, torch.ones(18, dtype=torch.bool), 9, clip=99.0)
    assert found.max().item() == pytest.approx(4, rel=1e-6)
    alone = group_advantages(rewards[:9], torch.ones(9, dtype=torch.bool), 9, std="group", clip=99.0)
    assert alone.max().item() == pytest.approx(8**0.5, rel=1e-6)


def test_a_few_step_model_without_a_lora_has_none_to_scale_or_copy():
    found = ineffective(config("model.adapter_scale=2", "fake.start=generator"), replace(ENTRY, lora=None))
    assert list(found) == ["model.adapter_scale", "fake.start"]
    assert set(found.values()) == {"the run starts from no LoRA"}


def test_settings_that_need_several_steps_are_ineffective_with_one():
    once = ("rollout.steps=1", "timesteps.per_iteration=1", "generator.trunc_steps=1")
    changed = ("timesteps.k_sharing=group", "surrogate.boundary=last", "surrogate.time_weight=false")
    found = ineffective(config(*once, *changed))
    assert set(found) == {name.partition("=")[0] for name in changed}


@pytest.mark.parametrize("place", ["train", "evaluate"])
def test_a_missing_prompt_set_is_rejected_with_the_settings(place):
    with raises("prompts-unknown", name="nosuch"):
        resolve_run(config(f"prompts.{place}=nosuch"), FOUND, entry=ENTRY)


def test_alpha_is_read_from_tensors_and_neighbouring_files_but_not_from_kohyas_record(tmp_path):
    tensors = {"a.lora_A.weight": torch.zeros(2, 2)}
    save_file(tensors, tmp_path / "kohya.safetensors", metadata={"ss_network_alpha": "4"})
    save_file({**tensors, "a.alpha": torch.tensor(4.0)}, tmp_path / "own.safetensors")
    save_file(tensors, tmp_path / "silent.safetensors")
    assert [has_alpha(tmp_path / f"{name}.safetensors") for name in ("kohya", "own", "silent")] == [False, True, False]
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 8}')
    assert has_alpha(tmp_path / "silent.safetensors")
    (tmp_path / "damaged.safetensors").write_bytes(b"no")
    assert not has_alpha(tmp_path / "damaged.safetensors")
    assert not has_alpha(tmp_path / "absent.safetensors")


def test_controls_are_not_contradictions():
    assert ineffective(config("generator.reward_scale=0", "generator.trunc_steps=0")) == {}
    assert ineffective(config("guard.stop=true", "evaluation.every=5")) == {}
