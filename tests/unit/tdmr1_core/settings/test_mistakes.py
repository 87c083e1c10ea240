"""Wrong values of every setting, in plain words; and what an unknown name may mean."""

from __future__ import annotations

from datetime import date

import pytest
from pydantic import BaseModel
from support.errors import raises

from tdmr1_core.config import RewardConfig, RunConfig, annotations_in
from tdmr1_core.config_loading import merge, parse_assignments, resolve
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.settings.mistakes import SYNONYMS, setting_names
from tdmr1_core.settings.yaml_text import load_yaml

pytestmark = pytest.mark.unit

REWARD = {"rewards": [{"name": "object_count"}]}
LISTS = ("rewards", "evaluation.rewards", "guard.rewards")
SECTIONS = [name for name, field in RunConfig.model_fields.items() if isinstance(field.default, BaseModel)]
FIELDS = {
    **RunConfig.model_fields,
    **{
        f"{section}.{name}": field
        for section in SECTIONS
        for name, field in type(RunConfig.model_fields[section].default).model_fields.items()
    },
    **{f"{place}.0.{name}": field for place in LISTS for name, field in RewardConfig.model_fields.items()},
}
"""Every section, list and setting, also those of rewards."""
NUMBERS = [name for name, field in FIELDS.items() if {int, float} & set(annotations_in(field.annotation))]
NUMBERS = [name for name in NUMBERS if name not in (*SECTIONS, *LISTS)]
INTEGERS = [name for name in NUMBERS if float not in set(annotations_in(FIELDS[name].annotation))]
WRONG = [None, True, 3, -1.5, "wrong", "010", [1], {"wrong": 1}, {}, [[]], date(2026, 1, 1), b"x"]
JARGON = ("tuple", "instance of", "pathlib", "constrained", "literal[", "Input", "input should", "validation", "dict")


def at(name, value):
    """Settings with rewards in all three lists, in which one setting has another value."""
    below = {**REWARD, **{section: {"rewards": [{"name": "x"}]} for section in ("evaluation", "guard")}}
    over = value
    for part in reversed(name.split(".")):
        over = {part: over}
    if name not in LISTS or not isinstance(value, dict):
        return merge(below, over)
    section, _, last = name.rpartition(".")  # `merge` would change items of the list
    return {**below, section: {last: value}} if section else {**below, last: value}


def test_all_settings_are_walked():
    assert len(FIELDS) > 120
    assert set(setting_names()) <= set(FIELDS)
    assert len(NUMBERS) > 50


def error_of(tree):
    """The error that these settings lead to; None if they are valid."""
    try:
        resolve([tree])
    except Tdmr1Error as error:
        return error
    return None


@pytest.mark.parametrize("name", FIELDS)
def test_a_wrong_value_is_one_problem_without_jargon(name):
    errors = [error for value in WRONG if (error := error_of(at(name, value))) is not None]
    assert len(errors) >= (6 if name.endswith("options") else 8)
    for error in errors:
        (setting,), (problem,) = error.values["settings"], error.values["problems"]
        assert not setting or f"{setting}.".startswith(f"{name}.")
        assert setting in problem
        assert error.hint
        assert [word for word in JARGON if word in error.message] == []


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", ["yes", "no", "true", "off", "010", "1:30", "1_000", "'1'"])
def test_a_number_is_not_read_from_a_boolean_or_another_notation(name, value):
    with raises("setting-invalid", settings=[name]):
        resolve([at("seed", 0), parse_assignments([f"{name}={value}"])])
    with raises("setting-invalid", settings=[name]):
        resolve([at(name, load_yaml(value))])


@pytest.mark.parametrize("name", INTEGERS)
def test_an_integer_is_not_read_from_a_float(name):
    with raises("setting-invalid", settings=[name]):
        resolve([at(name, 8.0)])


@pytest.mark.parametrize(
    ("text", "value"), [("1e-4", 1e-4), ("1E-4", 1e-4), ("2e0", 2.0), ("1.0e-4", 1e-4), ("1", 1.0)]
)
def test_a_float_without_a_dot_and_an_integer_are_accepted(text, value):
    found = resolve([REWARD, parse_assignments([f"rewards.0.weight={text}"])]).rewards[0].weight
    assert (type(found), found) == (float, value)


@pytest.mark.parametrize("value", ["yes", "on", "true", "True"])
def test_a_boolean_setting_has_all_words_of_yaml(value):
    assert resolve([REWARD, parse_assignments([f"guard.stop={value}"])]).guard.stop is True


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("rewards", "object_count", "a list of tables, such as rewards: [{name: object_count}]"),
        ("rewards", {"object_count": 1.0}, "a list of tables, such as rewards: [{name: object_count}]"),
        ("rewards.0", "object_count", "a table of settings, such as {name: object_count}"),
        ("model", "tiny-tdm", "a table of settings, such as model: {name: tiny-tdm}"),
        ("model", [1], "a table of settings, such as model: {name: tiny-tdm}"),
        ("prompts", "count", "a table of settings, such as prompts: {train: count}"),
        ("generator", None, "a table of settings, such as generator: {learning_rate: 7.5e-05}"),
        ("model.lora", True, "a path or null"),
        ("batch.micro_batch", False, "an integer of at least 1 and at most 1048576, auto or null"),
        ("optimizer.beta2", 1.0, "a number of at least 0 and below 1"),
        ("optimizer.final_lr", 2.0, "a number of at least 0 and at most 1"),
        ("memory.decoder", "fast", "auto, none, sliced or tiled"),
        ("memory.gradient_checkpointing", "fast", "true or false or auto"),
        ("guard.stop", "maybe", "true or false"),
        ("rewards.0.timeout", 0, "a number above 0 and at most 1000000, none or null"),
        ("rewards.0.options", 3, "a table whose keys are texts"),
    ],
)
def test_what_is_expected_is_said(name, value, expected):
    with raises("setting-invalid", settings=[name]) as caught:
        resolve([at(name, value)])
    assert caught.value.values["problems"][0].startswith(f"{name} must be {expected}; found ")


LEARNING_RATES = ["generator.learning_rate", "fake.learning_rate", "surrogate.learning_rate"]
HINTS = {
    "lr": LEARNING_RATES,
    "gen.lr": LEARNING_RATES[:1],
    "generator.lr": LEARNING_RATES[:1],
    "optimizer.lr": LEARNING_RATES,
    "optim.lr": LEARNING_RATES,
    "batch_size": ["batch.groups", "batch.group_size"],
    "BatchSize": ["batch.groups", "batch.group_size"],
    "bs": ["batch.groups", "batch.group_size"],
    "batch.bs": ["batch.groups", "batch.group_size"],
    "gs": ["batch.group_size"],
    "steps": ["rollout.steps", "iterations"],
    "max_steps": ["iterations"],
    "epochs": ["iterations"],
    "n_iter": ["iterations"],
    "wd": ["optimizer.weight_decay"],
    "weight_decay": ["optimizer.weight_decay"],
    "generator.weight_decay": ["optimizer.weight_decay"],
    "dtype": ["model.precision"],
    "grad_clip": ["optimizer.max_grad_norm"],
    "attention_backend": ["memory.attention"],
    "memory.attn_implementation": ["memory.attention"],
    "rank": ["model.rank"],
    "lora_rank": ["model.rank"],
    "cfg": ["generator.guidance_scale"],
    "guidance": ["generator.guidance_scale"],
    "resolution": ["model.height", "model.width"],
    "num_images_per_prompt": ["batch.group_size"],
    "rewards.0.bs": ["rewards.0.batch_size"],
    "nothing.lr": LEARNING_RATES,
    "modle.name": ["model.name"],
}


@pytest.mark.parametrize("name", HINTS)
def test_the_hint_for_an_abbreviation_or_the_name_of_another_program(name):
    with raises("setting-unknown") as caught:
        resolve([REWARD, parse_assignments([f"{name}=1"])])
    assert caught.value.hint == f"did you mean {' or '.join(map(repr, HINTS[name]))}?"


def test_the_synonyms_are_settings():
    assert {name for names in SYNONYMS.values() for name in names} <= set(setting_names())


@pytest.mark.parametrize(
    ("key", "form"),
    [
        ("generator.learning_rate", "generator: {learning_rate: …}"),
        ("generator.lr", "generator: {learning_rate: …}"),
        ("batch.bs", "batch: {groups: …} or batch: {group_size: …}"),
        ("rewards.0.weight", "rewards: [{weight: …}]"),
        ("foo.bar", "foo: {bar: …}"),
    ],
)
def test_a_name_with_dots_in_a_file_gets_the_nested_form(key, form):
    with raises("setting-unknown", settings=[key]) as caught:
        resolve([{**REWARD, key: 1}])
    assert caught.value.hint == f"names with dots are for --set; in YAML, write {form}"


@pytest.mark.parametrize("tree", [{1: 2}, {True: 3}, {"model": {1: 2}}, {"lr": 1, "model": {"x": 1}}])
def test_keys_that_are_not_text_are_unknown_settings(tree):
    with raises("setting-unknown"):
        resolve([{**REWARD, **tree}])


def test_a_missing_name_of_a_reward():
    with raises("setting-invalid", settings=["rewards.0.name"]):
        resolve([{"rewards": [{"weight": 1}]}])
