"""Merging layers of settings, and the errors of wrong ones."""

from __future__ import annotations

import pytest
import yaml
from pydantic import BaseModel
from support.errors import raises, warns
from support.paths import ROOT

from tdmr1_core.config import RewardConfig, RunConfig
from tdmr1_core.config_loading import (
    describe,
    dump,
    fingerprint,
    merge,
    parse_assignments,
    preset_names,
    read_file,
    read_preset,
    resolve,
    with_former_defaults,
)
from tdmr1_rewards.builtin.geneval import GenEvalOptions

pytestmark = pytest.mark.unit

REWARD = {"rewards": [{"name": "object_count"}]}


def test_every_shipped_settings_file_is_valid():
    shipped = [*ROOT.glob("tdmr1_*/**/*.yaml"), *ROOT.glob("examples/**/*.yaml")]
    shipped = [
        path for path in shipped if not path.name.startswith("accelerate_")
    ]  # a config of accelerate, not of tdmr1
    assert len(shipped) >= 6
    for path in shipped:
        tree = read_file(path)
        assert resolve([REWARD if tree.get("kind") != "distill" else {}, tree])
    assert {"ocr", "geneval", "imagereward", "hps", "tiny", "distill-tiny", "ocr-regularised"} <= set(preset_names())


@pytest.mark.parametrize(
    ("preset", "groups", "beta_dpo", "query", "train", "rl_cfg", "clip", "trunc_steps"),
    [
        ("ocr", 48, 10, 0.30, 0.30, 4.5, 1e-3, 4),
        ("geneval", 48, 1, 0.25, 0.55, 2.5, 1e-3, 4),
        ("imagereward", 24, 1, 0.40, 0.55, 3.5, 2e-3, 2),
        ("hps", 24, 10, 0.40, 0.55, 3.5, 2e-3, 2),
    ],
)
def test_published_settings(preset, groups, beta_dpo, query, train, rl_cfg, clip, trunc_steps):
    config = resolve([read_preset(preset), REWARD])
    assert (config.batch.groups, config.batch.group_size) == (groups, 24)
    assert config.surrogate.beta_dpo == beta_dpo
    assert (config.generator.tau_min, config.surrogate.tau_min) == (query, train)
    assert config.generator.rl_cfg == rl_cfg
    assert config.surrogate.trust_region == clip
    assert config.generator.trunc_steps == trunc_steps
    assert (config.fake.learning_rate, config.surrogate.learning_rate) == (3e-4, 3e-4)
    assert config.generator.learning_rate == pytest.approx(3e-4 / 4)
    assert (config.generator.beta1, config.fake.beta1, config.surrogate.beta1) == (0, 0, 0.9)
    assert (config.generator.guidance_scale, config.generator.tdm_weight) == (4.5, 0.3)
    assert (config.generator.ema_decay, config.generator.ema_warmup) == (0.9, True)
    assert (config.model.lora_init, config.fake.start) == ("gaussian", "zero")
    shared = 2 if preset == "geneval" else 4
    sharing = (config.timesteps.k_sharing, config.timesteps.tau_sharing, config.surrogate.tau_sharing)
    assert sharing == (shared, shared, shared)
    assert (config.surrogate.drift_threshold, config.surrogate.reference_penalty) == (0.05, 0.001)


def test_the_preset_geneval_trains_on_the_published_score_and_evaluates_the_official_verdict():
    config = resolve([read_preset("geneval")])
    options = {"repeated_classes": "independent"}
    (trained,), (evaluated,) = config.rewards, config.evaluation.rewards
    assert (trained.name, trained.options) == ("geneval", {"score": "published", **options})
    assert (evaluated.name, evaluated.options) == ("geneval", {"score": "strict", **options})
    assert GenEvalOptions(**trained.options).score == "published"


def test_the_tiny_presets_keep_the_score_of_their_measurements():
    """Their training reward has the default options of `geneval`: half strict, half graded."""
    assert (GenEvalOptions().score, GenEvalOptions().repeated_classes) == ("mixed", "divided")
    for preset in ("tiny-geneval", "tiny-pairs"):
        tree = read_preset(preset)
        assert "rewards" not in tree
        assert tree["evaluation"]["rewards"] == [{"name": "geneval", "options": {"score": "strict"}}]


def test_the_stronger_regularization_changes_three_settings_of_ocr():
    changed = {"beta_dpo": 100, "reference_penalty": 0.01, "trust_region": 2e-3}
    expected = merge(dump(resolve([read_preset("ocr"), REWARD])), {"surrogate": changed})
    assert dump(resolve([read_preset("ocr-regularised"), REWARD])) == expected


@pytest.mark.parametrize("preset", [name for name in preset_names() if "tiny" in name])
def test_the_tiny_presets_keep_what_their_figures_were_measured_with(preset):
    config = resolve([{} if preset.startswith("distill") else REWARD, read_preset(preset)])
    assert (config.model.lora_init, config.generator.ema_warmup) == ("kaiming", False)
    assert preset.startswith("distill") or config.fake.start == "generator"


def test_later_layers_override_single_settings():
    config = resolve([read_preset("tiny"), REWARD, {"seed": 3}, parse_assignments(["seed=4", "batch.groups=2"])])
    assert (config.seed, config.batch.groups, config.batch.group_size) == (4, 2, 12)


def test_assignments_change_list_items_and_parse_numbers():
    tree = parse_assignments(["rewards.0.weight=1e-1", "generator.learning_rate=1e-4", "advantages.permute=true"])
    config = resolve([REWARD, tree])
    assert (config.rewards[0].weight, config.generator.learning_rate, config.advantages.permute) == (0.1, 1e-4, True)
    with raises("assignment-invalid", item="3", length=1):
        resolve([REWARD, parse_assignments(["rewards.3.weight=1"])])


def test_merge_does_not_change_its_arguments():
    base, over = {"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}
    assert merge(base, over) == {"a": {"b": 3, "c": 2}}
    assert (base, over) == ({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}})


def test_former_defaults_fill_what_a_run_lacks():
    lacking, complete = (
        {"rollout": {"sampler": "dpm-solver++"}},
        {"rollout": {"sampler": "dpm-solver++", "dpm_levels": 3, "sigmas": None}},
    )
    assert with_former_defaults(lacking)["rollout"] == {
        "sampler": "dpm-solver++",
        "dpm_levels": "euler",
        "sigmas": None,
    }
    assert lacking == {"rollout": {"sampler": "dpm-solver++"}}
    assert with_former_defaults(complete)["rollout"] == complete["rollout"]
    for rollout in (
        {"sampler": "euler", "sigmas": None},
        {"sigmas": None},
        3,
        None,
    ):  # without effect, or refused later
        assert with_former_defaults({"rollout": rollout})["rollout"] == rollout


@pytest.mark.parametrize("assignment", ["seed", "=3", "a..b=1", ".a=1"])
def test_a_malformed_assignment_is_rejected(assignment):
    with raises("assignment-invalid", assignment=assignment):
        parse_assignments([assignment])


@pytest.mark.parametrize(
    ("first", "second", "setting"),
    [
        ("seed=1", "seed=2", "seed"),
        ("seed=1", "seed=1.0", "seed"),
        ("seed=1", "seed=true", "seed"),
        ("generator.learning_rate=1e-4", "generator={learning_rate: 2.0e-4}", "generator.learning_rate"),
        ("generator={learning_rate: 2.0e-4}", "generator.learning_rate=1e-4", "generator.learning_rate"),
        ("generator=3", "generator.learning_rate=1e-4", "generator"),
        ("generator.learning_rate=1e-4", "generator=3", "generator"),
        ("rewards.0.weight=2", "rewards=[{name: a}]", "rewards"),
        ("rewards=[{name: a}]", "rewards.0.weight=2", "rewards"),
        ("rewards.0.weight=2", "rewards={0: {weight: 3}}", "rewards.0.weight"),
        ("rewards.0.weight=2", "rewards.00.weight=3", "rewards.0.weight"),
    ],
)
def test_a_setting_that_is_set_twice_is_refused_with_both_assignments(first, second, setting):
    with raises("assignment-invalid", setting=setting, assignments=[first, second]):
        parse_assignments([first, "iterations=3", second])


def test_equal_and_separate_assignments_are_accepted():
    assert parse_assignments(["seed=1", "seed=1", "seed= 1"]) == {"seed": 1}
    tree = parse_assignments(["generator.tau_min=0.5", "generator={beta1: 0.5, tau_min: 0.5}"])
    assert tree == {"generator": {"tau_min": 0.5, "beta1": 0.5}}


@pytest.mark.parametrize(("value", "words"), [("[1", "has no end ]"), ('"x', "closing quote"), ("!a 1", "tag !a")])
def test_an_assignment_that_is_not_yaml_is_explained(value, words):
    with raises("assignment-invalid", assignment=f"a.b={value}") as caught:
        parse_assignments([f"a.b={value}"])
    assert words in caught.value.values["problem"]


def test_an_empty_table_does_not_stand_for_a_list():
    with raises("setting-invalid", settings=["rewards"]):
        resolve([REWARD, {"rewards": {}}])


def test_all_mistakes_are_reported_at_once_with_the_nearest_name():
    with raises("setting-invalid") as caught:
        resolve([REWARD, {"generator": {"learning_rat": 1}, "iterations": "many", "batch": {"group_size": 1}}])
    assert set(caught.value.values["settings"]) == {"generator.learning_rat", "iterations", "batch.group_size"}
    assert '"many"' in caught.value.message
    assert "did you mean 'generator.learning_rate'?" in caught.value.hint


def test_an_unknown_setting_has_its_own_code():
    with raises("setting-unknown", settings=["generator.learning_rat"]):
        resolve([REWARD, {"generator": {"learning_rat": 1}}])


@pytest.mark.parametrize(
    ("tree", "hint"),
    [
        ({"generator": {"lr": 1}}, "did you mean 'generator.learning_rate'?"),
        ({"batch": {"size": 8}}, "did you mean 'batch.group_size'?"),
        ({"rewards": [{"name": "a", "wt": 1}]}, "did you mean 'rewards.0.weight'?"),
        ({"beta_dpo": 1}, "did you mean 'surrogate.beta_dpo'?"),
        ({"tau_min": 0.3}, "did you mean 'surrogate.tau_min' or 'generator.tau_min'?"),
        ({"gen": {"lr": 1}}, "did you mean 'generator.learning_rate'?"),
    ],
)
def test_the_hint_for_an_unknown_setting(tree, hint):
    with raises("setting-unknown") as caught:
        resolve([{**REWARD, **tree}])
    assert caught.value.hint == hint


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("seed: 1\nbatch:\n  groups: 2\n  groups: 3\n", 4, "the key 'groups' occurs twice, in lines 3 and 4"),
        ("seed: 1\nbatch: {groups: 2}\nseed: 2\n", 3, "the key 'seed' occurs twice, in lines 1 and 3"),
        ("batch: {groups: 2, 'groups': 3}\n", 1, "the key 'groups' occurs twice, in the same line"),
        ("rewards:\n- name: a\n  weight: 1\n  weight: 2\n", 4, "the key 'weight' occurs twice, in lines 3 and 4"),
    ],
)
def test_a_key_that_occurs_twice_is_refused(tmp_path, text, line, problem):
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with raises("config-unreadable", file=str(path), line=line) as caught:
        read_file(path)
    assert caught.value.message.endswith(problem)


def test_a_merged_key_may_be_overridden(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("a: &x {b: 1, c: 2}\nd: {<<: *x, b: 3}\ne: {<<: *x}\n")
    assert read_file(path) == {"a": {"b": 1, "c": 2}, "d": {"b": 3, "c": 2}, "e": {"b": 1, "c": 2}}


@pytest.mark.parametrize(
    ("tree", "problem"),
    [
        ({"rewards": []}, "at least one reward"),
        ({"rewards": [{"name": "a"}, {"name": "a"}]}, "named more than once"),
        ({**REWARD, "rollout": {"steps": 2}, "timesteps": {"per_iteration": 3}}, "per_iteration is 3, but"),
        ({**REWARD, "surrogate": {"updates": 2}}, "surrogate.updates is 2, but"),
        ({**REWARD, "memory": {"weights": "nf4"}, "model": {"precision": "fp64"}}, "model.precision fp64"),
    ],
)
def test_settings_that_exclude_each_other_are_rejected(tree, problem):
    with raises("setting-invalid") as caught:
        resolve([tree])
    (found,) = caught.value.values["problems"]
    assert problem in found


def test_a_file_without_settings_is_rejected_with_the_place(tmp_path):
    for name, content, values in [
        ("list.yaml", b"- 1\n", {"found": "list"}),
        ("broken.yaml", b"a: [1\nb: 2\n", {"line": 2}),
        ("binary.yaml", b"\xff\xfe\x00", {"byte": 0}),
    ]:
        (tmp_path / name).write_bytes(content)
        with raises("config-unreadable", file=str(tmp_path / name), **values):
            read_file(tmp_path / name)
    with raises("config-unreadable", file=str(tmp_path / "absent.yaml")):
        read_file(tmp_path / "absent.yaml")


@pytest.mark.parametrize("name", ["decoder", "weights", "optimizer"])
def test_the_former_word_whole_is_read_as_none_with_a_warning(name):
    with warns("setting-renamed", setting=f"memory.{name}", new="none"):
        config = resolve([REWARD, {"memory": {name: "whole"}}])
    assert config == resolve([REWARD, {"memory": {name: "none"}}])


def test_a_config_equals_itself_after_a_yaml_round_trip():
    config = resolve([read_preset("tiny"), REWARD])
    again = resolve([yaml.safe_load(yaml.safe_dump(dump(config)))])
    assert again == config
    assert fingerprint(again) == fingerprint(config)
    assert fingerprint(config) != fingerprint(resolve([read_preset("tiny"), REWARD, {"seed": 1}]))


def is_number(annotation):
    return annotation is float or any(map(is_number, getattr(annotation, "__args__", ())))


def numbers_of(section, prefix=""):
    """The dotted names of settings that are floats."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from numbers_of(field.annotation, f"{prefix}{name}.")
        elif is_number(field.annotation):
            yield prefix + name


LISTS = ("rewards", "evaluation.rewards", "guard.rewards")
NUMBERS = [*numbers_of(RunConfig), *(f"{place}.0.{name}" for place in LISTS for name in numbers_of(RewardConfig))]


def test_the_float_settings_are_found():
    assert {"model.alpha", "generator.tau_min", "surrogate.trust_region", "guard.rewards.0.weight"} <= set(NUMBERS)
    assert len(NUMBERS) >= 35


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", ["nan", ".inf"])
def test_a_number_that_is_not_finite_is_rejected(name, value):
    lists = {
        "rewards": [{"name": "a"}],
        "evaluation": {"rewards": [{"name": "b"}]},
        "guard": {"rewards": [{"name": "c"}]},
    }
    with raises("setting-invalid", settings=[name]):
        resolve([lists, parse_assignments([f"{name}={value}"])])


def test_every_setting_has_a_description():
    rows = describe(RunConfig)
    assert len(rows) > 60
    assert [name for name, _, _, meaning in rows if not meaning] == []


@pytest.mark.parametrize("shift", [1.0, 1.6289, 3.0])
@pytest.mark.parametrize("terminal", [None, 0.02])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8])
def test_a_resume_accepts_the_noise_levels_of_every_schedule(steps, terminal, shift):
    from tdmr1_core.algorithm.flow import sigma_schedule, stretch

    stored = sigma_schedule(steps, shift)
    stored = stretch(stored, terminal) if terminal is not None and steps > 1 else stored
    rollout = {"shift": shift, "sigmas": [round(level, 4) for level in stored.tolist()]}
    assert resolve([{**REWARD, "rollout": rollout, "timesteps": {"per_iteration": 1}}]).rollout.shift == shift


@pytest.mark.parametrize("terminal", [None, 0.02])
@pytest.mark.parametrize("levels", ["euler", "scheduler"])
def test_stored_noise_levels_and_a_shift_agree(levels, terminal):
    """A run stores its noise levels. Another shift in a copy of its settings would have no effect."""
    from tdmr1_core.algorithm.flow import sigma_schedule, stretch

    stored = sigma_schedule(4, 3.0, levels)
    stored = (stored if terminal is None else stretch(stored, terminal)).tolist()
    assert resolve([{**REWARD, "rollout": {"shift": 3.0, "sigmas": stored}}]).rollout.shift == 3.0
    assert resolve([{**REWARD, "rollout": {"sigmas": stored}}]).rollout.step_count == 4
    with raises("setting-invalid") as raised:
        resolve([{**REWARD, "rollout": {"shift": 3.0, "sigmas": stored}}, {"rollout": {"shift": 5.0}}])
    assert "rollout.shift is 5, but rollout.sigmas, which a run stores, are not its noise levels" in str(raised.value)
    changed = resolve(
        [{**REWARD, "rollout": {"shift": 3.0, "sigmas": stored}}, {"rollout": {"shift": 5.0, "sigmas": None}}]
    )
    assert changed.rollout.sigmas is None
