"""The README says what is: its commands exist, its reward works, its links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest
from support.code_length import code_lines
from support.paths import ROOT

from tdmr1_core import hookspecs as engine_hooks
from tdmr1_rewards import RewardBatch, RewardContext
from tdmr1_rewards import hookspecs as reward_hooks

pytestmark = pytest.mark.unit

README = (ROOT / "README.md").read_text()


def code(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_every_command_it_names_exists():
    named = {
        tuple(match.split())
        for match in re.findall(r"(?:^|`)tdmr1 ((?:config |models |rewards )?[a-z]+)", README, re.M)
    }
    assert len(named) >= 8
    for words in sorted(named):
        shown = subprocess.run(
            [sys.executable, "-m", "tdmr1_cli", *words, "--help"], capture_output=True, text=True, timeout=60
        )
        assert shown.returncode == 0, words


def test_make_targets_it_names_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"make ([a-z-]+)", README))
    assert {"train", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_its_reward_is_the_example_and_works():
    (reward,) = (block for block in code("python") if "class RedShare" in block)
    example = (ROOT / "examples/reward_plugin/src/tdmr1_red_share/__init__.py").read_text()
    strip = re.compile(r'^""".*?"""\n\n|  # noqa.*$', re.MULTILINE)
    assert strip.sub("", example) == reward
    names: dict = {}
    exec(reward, names)
    images = np.zeros((2, 4, 4, 3), np.uint8)
    images[0, ..., 0] = 200
    images[1, ..., 1] = 200
    batch = RewardBatch(images, ["", ""], [{}, {}], [0, 0], [0, 1], RewardContext(None, 0, 0))
    assert names["RedShare"]()(batch).scores == [1.0, 0.0]
    specs = []
    names["tdmr1_register_rewards"](specs.append)
    assert [spec.name for spec in specs] == ["red_share"]


def test_its_reward_is_as_short_as_it_says():
    (reward,) = (block for block in code("python") if "class RedShare" in block)
    assert "in 20 lines" in README
    assert 10 <= code_lines(reward) <= 20


def test_its_links_lead_somewhere():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


def test_every_hook_is_in_the_guide():
    guide = (ROOT / "docs" / "writing_rewards.md").read_text()
    hooks = [name for module in (engine_hooks, reward_hooks) for name in vars(module) if name.startswith("tdmr1_")]
    assert len(hooks) >= 12
    assert [name for name in hooks if name not in guide] == []
