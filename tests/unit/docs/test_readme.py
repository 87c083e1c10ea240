"""README and docs: commands, make targets and links exist, the example reward works, every document is reachable."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.code_length import code_lines
from support.paths import ROOT

from tdmr1_core import hookspecs as engine_hooks
from tdmr1_rewards import RewardBatch, RewardContext
from tdmr1_rewards import hookspecs as reward_hooks

pytestmark = pytest.mark.unit

README = (ROOT / "README.md").read_text()
MAX_LINES = 150
PAGES = [
    ROOT / name
    for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "examples/configs/README.md")
]
PAGES += sorted((ROOT / "docs").glob("*.md"))


def links_of(page: Path) -> list[str]:
    """The links of a page to files and headings, without code blocks."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'<img src="([^"]+)"', text)
    return [link for link in links if not link.startswith("http")]


def headings_of(page: Path) -> set[str]:
    """The anchors of the headings of a page, as GitHub names them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def code(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_readme_is_short():
    assert len(README.splitlines()) <= MAX_LINES


def test_every_named_command_exists():
    text = README + (ROOT / "docs" / "usage.md").read_text()
    named = {
        tuple(match.split()) for match in re.findall(r"(?:^|`)tdmr1 ((?:config |models |rewards )?[a-z]+)", text, re.M)
    }
    assert len(named) >= 14
    for words in sorted(named):
        shown = subprocess.run(
            [sys.executable, "-m", "tdmr1_cli", *words, "--help"], capture_output=True, text=True, timeout=60
        )
        assert shown.returncode == 0, words


def test_every_named_make_target_exists():
    makefile = (ROOT / "Makefile").read_text()
    pattern = r"(?:^|`)make ([a-z-]+)"
    assert {"train", "test"} <= set(re.findall(pattern, README, re.MULTILINE))
    targets = {name for page in PAGES for name in re.findall(pattern, page.read_text(), re.MULTILINE)}
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_reward_of_the_readme_is_the_example_and_works():
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


def test_the_reward_of_the_readme_has_at_most_20_lines():
    (reward,) = (block for block in code("python") if "class RedShare" in block)
    assert "in 20 lines" in README
    assert 10 <= code_lines(reward) <= 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(page):
    for link in links_of(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        if target.suffix == ".py":  # the name of a function or class, see test_site_pages.py
            continue
        assert not anchor or anchor in headings_of(target), link


def test_every_document_is_linked_from_the_readme():
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in links_of(ROOT / "README.md")}
    assert set(PAGES) - {ROOT / "README.md"} <= linked


def test_every_hook_is_in_the_guide():
    guide = (ROOT / "docs" / "writing_rewards.md").read_text()
    hooks = [name for module in (engine_hooks, reward_hooks) for name in vars(module) if name.startswith("tdmr1_")]
    assert len(hooks) >= 12
    assert [name for name in hooks if name not in guide] == []
