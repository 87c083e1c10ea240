"""Writes the files of docs/writing_rewards.md, and runs its commands in order."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image
from support.command_line import run_tdmr1
from support.paths import ROOT

from tdmr1_rewards import RewardBatch, RewardContext
from tdmr1_rewards.calling.import_file import load_from_file
from tdmr1_rewards.calling.state import get_state, load_state

pytestmark = pytest.mark.integration

GUIDE = (ROOT / "docs" / "writing_rewards.md").read_text()
LONG = {"train": ["--dry-run"], "probe": ["--help"]}
"""Options with which slow commands only parse their arguments."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with the files of the guide and two images."""
    folder = tmp_path_factory.mktemp("guide")
    files = {match[1]: block for block in blocks("python") if (match := re.match(r"# (\w+\.py)\n", block))}
    assert sorted(files) == ["bright.py", "hue.py", "running.py", "sharp.py", "vivid.py", "warm.py"]
    (files["hues.jsonl"],) = blocks("jsonl")
    for name, text in files.items():
        (folder / name).write_text(text)
    Image.new("RGB", (64, 48), (230, 120, 30)).save(folder / "image.png")
    Image.new("RGB", (64, 48), (90, 80, 70)).save(folder / "other.png")
    return folder


def test_every_command_of_the_guide_works(folder):
    commands = [line for block in blocks("sh") for line in block.splitlines() if line.strip()]
    assert len(commands) >= 12
    for line in commands:
        program, verb, *arguments = shlex.split(line)
        assert program == "tdmr1"
        further = [] if "--dry-run" in arguments else LONG.get(verb, [])
        done = run_tdmr1(verb, *arguments, *further, cwd=folder)
        assert done.stdout.strip(), line


def test_a_run_prints_the_convention_of_a_function(folder):
    arguments = ["train", "--reward", "sharp.py:sharp:0.5", "--dry-run"]
    done = run_tdmr1(*arguments, cwd=folder)
    assert "used as a flow_grpo-style function, sharp(images, prompts, metadata, scale)" in done.stderr
    assert f"source: {folder}/sharp.py:sharp" in done.stdout
    assert "prompts: 36 in count" in done.stderr


def test_the_state_of_the_running_reward_can_be_saved_and_restored(folder):
    first, second = (load_from_file(folder / "running.py", "Running")() for _ in range(2))
    image = Image.open(folder / "image.png")
    batch = RewardBatch([image], [""], [{}], [0], [0], RewardContext(None, 0, 0))
    before = first(batch).scores
    load_state(second, get_state(first))
    assert second(batch).scores == first(batch).scores != before


def test_the_groupwise_reward_compares_images_of_a_prompt(folder):
    arguments = ["rewards", "try", "vivid.py:SPEC", "image.png", "other.png", "--json"]
    images = json.loads(run_tdmr1(*arguments, cwd=folder).stdout)["images"]
    assert [image["score"] for image in images] == [1, 0]
    few = ["--set", "evaluation.images=30"]
    done = run_tdmr1("train", "--reward", "vivid.py:SPEC", *few, "--dry-run", cwd=folder, code=2)
    assert "[setting-conflict]" in done.stderr


def test_the_required_field_is_checked_before_a_run_and_in_a_batch(folder):
    train = ["train", "--reward", "hue.py:SPEC", "--dry-run"]
    done = run_tdmr1(*train, "--prompts", "count", cwd=folder, code=2)
    assert "[nothing-scored]" in done.stderr
    assert "the prompt has no field `hue`" in " ".join(done.stderr.split())
    (folder / "wrong.jsonl").write_text('{"prompt": "a lemon", "hue": "yellow"}\n')
    assert "[reward-metadata]" in run_tdmr1(*train, "--prompts", "wrong.jsonl", cwd=folder, code=2).stderr
    image = Image.open(folder / "image.png").convert("RGB")
    batch = RewardBatch([image] * 2, ["", ""], [{"hue": "blue"}, {}], [0, 0], [0, 1], RewardContext(None, 0, 0))
    result = load_from_file(folder / "hue.py", "hue")(batch)
    assert result.scores == [pytest.approx(30 / 380), None]
    assert result.details[1]["reason"] == "the prompt has no field `hue`"
