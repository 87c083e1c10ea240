"""A resume of a run that began before a setting existed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.errors import raises

from tdmr1_core.config_loading import (
    FORMER_DEFAULTS,
    FORMER_DEFAULTS_ONLY_WITH,
    Tree,
    dump,
    merge,
    parse_assignments,
    resolve,
)
from tdmr1_core.runs.checkpoints.checkpoint import FILES, SETTINGS
from tdmr1_core.runs.checkpoints.manifest import MANIFEST, describe
from tdmr1_core.runs.checkpoints.resume import find_resume_point, load_run_config

pytestmark = pytest.mark.unit

REWARD = {"rewards": [{"name": "object_count"}]}
OTHER = ("rollout.sampler=dpm-solver++", "generator.loss=huber")
"""Settings with which every former default has an effect."""


def settings(*assignments: str, without: tuple[str, ...] = ()) -> Tree:
    """All settings of a run, without some."""
    tree = dump(resolve([REWARD, parse_assignments(assignments)]))
    for name in without:
        section, _, key = name.rpartition(".")
        del (tree[section] if section else tree)[key]
    return tree


def write_run(folder: Path, config: Tree, saved: Tree) -> None:
    """A run folder with a config.yaml, and a checkpoint that has the settings `saved` and no weights."""
    checkpoint = folder / "checkpoints" / "step-000010"
    checkpoint.mkdir(parents=True)
    contents = dict.fromkeys(FILES, b"") | {SETTINGS: json.dumps(saved).encode()}
    for name, content in contents.items():
        (checkpoint / name).write_bytes(content)
    (checkpoint / MANIFEST).write_bytes(describe(contents))
    (folder / "config.yaml").write_text(yaml.safe_dump({"tdmr1": {"versions": {}}, **config}))


def value(tree: Any, name: str) -> Any:
    """The value of a dotted setting."""
    for part in name.split("."):
        tree = tree[part]
    return tree


NEW = tuple(FORMER_DEFAULTS)
FORMER = [f"{name}={json.dumps(former)}" for name, former in FORMER_DEFAULTS.items()]


def test_every_former_default_is_a_setting() -> None:
    current = settings()
    assert all(type(value(current, name)) is type(former) for name, former in FORMER_DEFAULTS.items())
    resolve([REWARD, parse_assignments(FORMER)])


@pytest.mark.parametrize(
    "saved", [settings(*OTHER, without=NEW), settings(*OTHER, *FORMER)], ids=["earlier", "resumed"]
)
def test_a_run_of_an_earlier_version_keeps_its_behavior(tmp_path: Path, saved: Tree) -> None:
    """Its last checkpoint was written by that version, or by this one after a resume."""
    write_run(tmp_path, settings(*OTHER, without=NEW), saved)
    point = find_resume_point(tmp_path)
    for name, former in FORMER_DEFAULTS.items():
        assert value(dump(point.config), name) == former
        assert value(dump(load_run_config(tmp_path)), name) == former
    assert point.changes == {}


def test_former_values_without_effect_are_not_used(tmp_path: Path) -> None:
    """Otherwise a resume would report a setting without effect that nobody set."""
    others = [name for name in NEW if name not in FORMER_DEFAULTS_ONLY_WITH]
    current = {"rollout": {"dpm_levels": "scheduler"}, "generator": {"joint_huber": True}}
    write_run(tmp_path, settings(without=NEW), merge(settings(*FORMER), current))
    point = find_resume_point(tmp_path)
    assert (point.config.rollout.dpm_levels, point.config.generator.joint_huber) == ("scheduler", True)
    assert all(value(dump(point.config), name) == FORMER_DEFAULTS[name] for name in others)


def test_a_new_run_whose_config_lacks_a_new_setting_is_refused(tmp_path: Path) -> None:
    """The checkpoint shows that the run had the setting: the file was cut."""
    write_run(tmp_path, settings(*OTHER, without=("rollout.dpm_levels",)), settings(*OTHER))
    with raises("config-incomplete", missing=["rollout.dpm_levels"]):
        find_resume_point(tmp_path)


def test_other_missing_settings_are_still_refused(tmp_path: Path) -> None:
    write_run(tmp_path, settings(*OTHER, without=("rollout", "seed")), settings(*OTHER, without=NEW))
    with raises("config-incomplete", missing=["seed", "rollout"]):
        find_resume_point(tmp_path)


def test_a_former_default_may_not_be_changed(tmp_path: Path) -> None:
    write_run(tmp_path, settings(*OTHER), settings(*OTHER, *FORMER))
    changes = {"rollout.dpm_levels": ["euler", "scheduler"]}
    with raises("resume-settings") as caught:
        find_resume_point(tmp_path)
    assert changes.items() <= caught.value.values["changes"].items()


@pytest.mark.parametrize("wrong", [0, 10**10, 20.5, "many"])
def test_a_wrong_number_of_iterations_is_refused_before_it_is_stored(tmp_path, wrong):
    write_run(tmp_path, settings(), settings())
    with raises("setting-invalid", settings=["iterations"]):
        find_resume_point(tmp_path, wrong)


def test_a_run_is_extended(tmp_path):
    write_run(tmp_path, settings(), settings())
    assert find_resume_point(tmp_path, 5000).config.iterations == 5000
