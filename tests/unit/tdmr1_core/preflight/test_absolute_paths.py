"""Relative paths in settings become absolute, so that a run means the same from any folder."""

from __future__ import annotations

import shutil
import sys

import pytest
from support.errors import raises

from tdmr1_core.config import RunConfig
from tdmr1_core.config_loading import parse_assignments, resolve
from tdmr1_core.models.catalog import BUILTIN_MODELS
from tdmr1_core.plugins import discover
from tdmr1_core.preflight.absolute_paths import make_absolute
from tdmr1_core.preflight.layers import Flags, resolve_settings
from tdmr1_core.preflight.resolved import resolve_run
from tdmr1_core.runs.run import Run
from tdmr1_rewards.sources.source import find_reward

pytestmark = pytest.mark.unit

TINY, FOUND = BUILTIN_MODELS[0], discover()
GOOD = "from tdmr1_rewards import RewardResult\n\n\ndef good(batch):\n    return RewardResult([1.0] * len(batch))\n"
RELATIVE = (
    "prompts.train=train.txt",
    "prompts.evaluate=texts/held.txt",
    "model.name=base",
    "model.path=base",
    "model.lora=lora.safetensors",
    "model.teacher=base",
    "memory.prompt_cache=texts/cache",
    "rewards=[{name: r, source: 'g.py:good'}, {name: object_count, python: bin/python}]",
    "evaluation.rewards=[{name: e, source: 'g.py:good'}]",
    "guard.rewards=[{name: h, source: 'g.py:good'}, {name: geneval}]",
)


def absolute(config: RunConfig) -> RunConfig:
    return make_absolute(config, FOUND.entry(config.model), FOUND)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working folder, with all files that the settings name."""
    folder = tmp_path / "here"
    shutil.copytree(TINY.base, folder / "base", ignore=shutil.ignore_patterns("*.safetensors", "tokenizer*"))
    for name, text in {"train.txt": "one circle\n", "texts/held.txt": "two circles\n", "g.py": GOOD}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    (folder / "lora.safetensors").touch()
    monkeypatch.chdir(folder)
    return folder


def test_every_relative_path_becomes_absolute(here):
    kept = absolute(resolve([parse_assignments(RELATIVE)]))
    model, (reward, other), (judge,) = kept.model, kept.rewards, kept.evaluation.rewards
    assert (model.name, model.teacher, model.path) == (str(here / "base"), str(here / "base"), here / "base")
    assert model.lora == here / "lora.safetensors"
    assert (kept.prompts.train, kept.prompts.evaluate) == (str(here / "train.txt"), str(here / "texts/held.txt"))
    assert kept.memory.prompt_cache == here / "texts/cache"
    sources = [reward.source, judge.source, *(held.source for held in kept.guard.rewards)]
    assert sources == [*[f"{here}/g.py:good"] * 3, None]
    assert other.python == here / "bin/python"
    assert absolute(kept) == kept


def test_names_and_hub_ids_do_not_change(here):
    for name in ("tiny-tdm", "count", "object_count", "same"):
        (here / name).mkdir()
    named = ("rewards=[{name: object_count}]", "prompts.train=count", "model.name=tiny-tdm", "model.teacher=same")
    config = resolve([parse_assignments([*named, "model.lora=owner/name/file.safetensors"])])
    assert absolute(config) == config


def test_the_command_line_and_python_resolve_the_same_paths(here, tmp_path, monkeypatch):
    sets = [part for part in RELATIVE if not part.startswith(("model.", "rewards"))]
    flags = Flags(rewards=["g.py:good"], sets=sets)
    shown = resolve_settings(flags, "train", FOUND).config
    assert shown.guard.rewards[0].source == f"{here}/g.py:good"
    other = f"rewards=[{{name: good, source: 'g.py:good', python: {sys.executable}}}]"
    given = resolve([parse_assignments([*sets, other])])
    kept = Run.create(given, tmp_path / "run", FOUND).config
    monkeypatch.chdir(tmp_path)
    for config in (shown, kept):
        resolved = resolve_run(config, FOUND)
        assert [prompt.text for each in resolved.evaluation_prompts for prompt in each.prompts] == [
            "one circle",
            "two circles",
        ]
        for reward in (*config.rewards, *config.evaluation.rewards, *config.guard.rewards):
            assert find_reward(FOUND.plugins.rewards, reward.source or reward.name).spec.name
    with raises("prompts-unknown", name="train.txt"):
        resolve_run(resolve([{"rewards": [{"name": "object_count"}]}, parse_assignments(["prompts.train=train.txt"])]))
