"""Layers of settings, and what is said when they are wrong."""

from __future__ import annotations

import pytest
import yaml
from pydantic import BaseModel
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
)
from tdmr1_core.errors import Tdmr1Error

pytestmark = pytest.mark.unit

REWARD = {"rewards": [{"name": "object_count"}]}


def test_every_shipped_yaml_is_a_valid_config():
    shipped = [*ROOT.glob("tdmr1_*/**/*.yaml"), *ROOT.glob("examples/**/*.yaml")]
    shipped = [path for path in shipped if not path.name.startswith("accelerate_")]  # those are accelerate's own
    assert len(shipped) >= 6
    for path in shipped:
        tree = read_file(path)
        assert resolve([REWARD if tree.get("kind") != "distill" else {}, tree])
    assert {"ocr", "geneval", "imagereward", "hps", "tiny", "distill-tiny"} <= set(preset_names())


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
    assert config.generator.ema_decay == 0.9
    assert (config.surrogate.drift_threshold, config.surrogate.reference_penalty) == (0.05, 0.001)


def test_later_layers_win_and_keep_the_rest():
    config = resolve([read_preset("tiny"), REWARD, {"seed": 3}, parse_assignments(["seed=4", "batch.groups=2"])])
    assert (config.seed, config.batch.groups, config.batch.group_size) == (4, 2, 12)


def test_assignments_reach_into_lists_and_read_numbers():
    tree = parse_assignments(["rewards.0.weight=1e-1", "generator.learning_rate=1e-4", "advantages.permute=true"])
    config = resolve([REWARD, tree])
    assert (config.rewards[0].weight, config.generator.learning_rate, config.advantages.permute) == (0.1, 1e-4, True)
    with pytest.raises(Tdmr1Error, match="no item 3 in a list of 1"):
        resolve([REWARD, parse_assignments(["rewards.3.weight=1"])])


def test_merge_leaves_its_arguments_alone():
    base, over = {"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}
    assert merge(base, over) == {"a": {"b": 3, "c": 2}}
    assert (base, over) == ({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}})


@pytest.mark.parametrize("assignment", ["seed", "=3", "a..b=1", ".a=1"])
def test_malformed_assignments(assignment):
    with pytest.raises(Tdmr1Error, match="is not an assignment"):
        parse_assignments([assignment])


def test_all_mistakes_are_told_at_once_with_the_nearest_name():
    with pytest.raises(Tdmr1Error) as caught:
        resolve([REWARD, {"generator": {"learning_rat": 1}, "iterations": "many", "batch": {"group_size": 1}}])
    assert caught.value.message.startswith("3 settings are wrong")
    for part in ("generator.learning_rat is not a setting", "iterations:", '"many"', "batch.group_size:"):
        assert part in caught.value.message
    assert "did you mean 'learning_rate'?" in caught.value.hint


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"rewards": []}, "at least one reward"),
        ({"rewards": [{"name": "a"}, {"name": "a"}]}, "named more than once"),
        ({**REWARD, "rollout": {"steps": 2}, "timesteps": {"per_iteration": 3}}, "per_iteration is 3 but"),
        ({**REWARD, "surrogate": {"updates": 2}}, "surrogate.updates is 2 but"),
    ],
)
def test_settings_that_contradict_each_other(tree, said):
    with pytest.raises(Tdmr1Error, match=said):
        resolve([tree])


def test_files_that_are_no_settings(tmp_path):
    for name, content, said in [
        ("list.yaml", b"- 1\n", "holds a list"),
        ("broken.yaml", b"a: [1\nb: 2\n", "line 2 is not valid YAML"),
        ("binary.yaml", b"\xff\xfe\x00", "is not text"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(Tdmr1Error, match=said):
            read_file(tmp_path / name)
    with pytest.raises(Tdmr1Error, match="can't be read"):
        read_file(tmp_path / "absent.yaml")


def test_a_config_survives_its_own_file():
    config = resolve([read_preset("tiny"), REWARD])
    again = resolve([yaml.safe_load(yaml.safe_dump(dump(config)))])
    assert again == config
    assert fingerprint(again) == fingerprint(config)
    assert fingerprint(config) != fingerprint(resolve([read_preset("tiny"), REWARD, {"seed": 1}]))


def is_number(annotation):
    return annotation is float or any(map(is_number, getattr(annotation, "__args__", ())))


def numbers_of(section, prefix=""):
    """The dotted names of settings that are numbers with a fraction."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from numbers_of(field.annotation, f"{prefix}{name}.")
        elif is_number(field.annotation):
            yield prefix + name


LISTS = ("rewards", "evaluation.rewards", "guard.rewards")
NUMBERS = [*numbers_of(RunConfig), *(f"{place}.0.{name}" for place in LISTS for name in numbers_of(RewardConfig))]


def test_the_settings_that_are_numbers_are_found():
    assert {"model.alpha", "generator.tau_min", "surrogate.trust_region", "guard.rewards.0.weight"} <= set(NUMBERS)
    assert len(NUMBERS) >= 35


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", ["nan", ".inf"])
def test_numbers_that_are_not_finite_are_refused(name, value):
    lists = {
        "rewards": [{"name": "a"}],
        "evaluation": {"rewards": [{"name": "b"}]},
        "guard": {"rewards": [{"name": "c"}]},
    }
    with pytest.raises(Tdmr1Error, match=f"{name}.*(finite|valid number|greater than|less than)"):
        resolve([lists, parse_assignments([f"{name}={value}"])])


def test_every_setting_has_a_meaning():
    rows = describe(RunConfig)
    assert len(rows) > 60
    assert [name for name, _, _, meaning in rows if not meaning] == []
