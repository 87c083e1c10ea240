"""What a run keeps of relative paths means the same from any folder."""

from __future__ import annotations

import shutil
import sys

import pytest

from tdmr1_cli.options import Flags, resolve_settings
from tdmr1_core.config_loading import parse_assignments, resolve
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.registry import builtin_models
from tdmr1_core.plugins import discover
from tdmr1_core.preflight.absolute_paths import make_absolute
from tdmr1_core.prompts.sets import evaluation_prompts
from tdmr1_core.runs.run import Run
from tdmr1_rewards.sources.source import find_reward

pytestmark = pytest.mark.unit

TINY, FOUND = builtin_models()[0], discover()
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


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with everything that the settings name, and that tests are run in."""
    folder = tmp_path / "here"
    shutil.copytree(TINY.base, folder / "base", ignore=shutil.ignore_patterns("*.safetensors", "tokenizer*"))
    for name, text in {"train.txt": "one circle\n", "texts/held.txt": "two circles\n", "g.py": GOOD}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    (folder / "lora.safetensors").touch()
    monkeypatch.chdir(folder)
    return folder


def test_everything_relative_becomes_absolute(here):
    kept = make_absolute(resolve([parse_assignments(RELATIVE)]), FOUND)
    model, (reward, other), (judge,) = kept.model, kept.rewards, kept.evaluation.rewards
    assert (model.name, model.teacher, model.path) == (str(here / "base"), str(here / "base"), here / "base")
    assert model.lora == here / "lora.safetensors"
    assert (kept.prompts.train, kept.prompts.evaluate) == (str(here / "train.txt"), str(here / "texts/held.txt"))
    assert kept.memory.prompt_cache == here / "texts/cache"
    sources = [reward.source, judge.source, *(held.source for held in kept.guard.rewards)]
    assert sources == [*[f"{here}/g.py:good"] * 3, None]
    assert other.python == here / "bin/python"
    assert make_absolute(kept, FOUND) == kept


def test_names_and_ids_of_the_hub_stay(here):
    for name in ("tiny-tdm", "count", "object_count", "same"):
        (here / name).mkdir()
    named = ("rewards=[{name: object_count}]", "prompts.train=count", "model.name=tiny-tdm", "model.teacher=same")
    config = resolve([parse_assignments([*named, "model.lora=owner/name/file.safetensors"])])
    assert make_absolute(config, FOUND) == config


def test_the_command_line_and_python_keep_the_same(here, tmp_path, monkeypatch):
    sets = [part for part in RELATIVE if not part.startswith(("model.", "rewards"))]
    flags = Flags(rewards=["g.py:good"], sets=sets)
    shown = resolve_settings(flags, "train", FOUND).config
    assert shown.guard.rewards[0].source == f"{here}/g.py:good"
    other = f"rewards=[{{name: good, source: 'g.py:good', python: {sys.executable}}}]"
    given = resolve([parse_assignments([*sets, other])])
    kept = Run.create(given, tmp_path / "run", FOUND).config
    monkeypatch.chdir(tmp_path)
    for config in (shown, kept):
        texts = [prompt.text for prompts in evaluation_prompts(config, FOUND, "tiny").values() for prompt in prompts]
        assert texts == ["one circle", "two circles"]
        for reward in (*config.rewards, *config.evaluation.rewards, *config.guard.rewards):
            assert find_reward(FOUND.plugins.rewards, reward.source or reward.name).spec.name
    with pytest.raises(Tdmr1Error, match=r"train\.txt"):
        evaluation_prompts(given, FOUND, "tiny")
