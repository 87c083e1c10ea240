"""Commands refuse a reward that compares images of a prompt if it would get one image of each, with exit code 2."""

from __future__ import annotations

import json

import pytest
import yaml
from PIL import Image
from support.command_line import small
from support.reward_server import serving

from tdmr1_rewards.api import RewardResult, RewardSpec
from tdmr1_rewards.serving.server import build_app

pytestmark = pytest.mark.integration

RELATIVE = """
from tdmr1_rewards import RewardResult, RewardSpec

SPEC = RewardSpec(name="relative", summary="", factory="relative:score", groupwise=True)

def score(batch):
    light = [image.convert("L").resize((1, 1)).getpixel((0, 0)) for image in batch.images]
    groups = {g: [a for a, other in zip(light, batch.group_ids) if other == g] for g in batch.group_ids}
    scores = [a - sum(groups[g]) / len(groups[g]) for a, g in zip(light, batch.group_ids)]
    return RewardResult(scores, [{"group": len(groups[g])} for g in batch.group_ids])
"""
TOKEN = "a-token-for-tests"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A reward in a file that compares the images of a prompt."""
    path = tmp_path_factory.mktemp("rewards") / "relative.py"
    path.write_text(RELATIVE)
    return f"{path}:SPEC"


@pytest.fixture(scope="module")
def served():
    """The address of such a reward on a server."""
    spec = RewardSpec(name="relative", summary="", factory="a:b", groupwise=True, image_format="array")
    app = build_app(lambda batch: RewardResult([float(len(batch))] * len(batch)), spec, TOKEN)
    with serving(app) as address:
        yield f"remote:{address}/relative"


def refused(done, code="setting-conflict"):
    assert f"[{code}]" in done.stderr
    assert "'relative'" in done.stderr
    assert not done.stdout
    return done.stderr


@pytest.mark.parametrize("command", [("train", "--dry-run"), ("train",), ("plan",)])
def test_a_run_with_one_image_for_a_prompt_is_refused_before_it_starts(tdmr1, source, tmp_path, command):
    done = tdmr1(*command, "--reward", f"relative={source}", *small(), cwd=tmp_path, code=2)
    message = " ".join(refused(done).split())
    assert "evaluation.images is 4 for the 36 prompts of count, so each has one image" in message
    assert "set evaluation.images_per_prompt to 2 or more, such as 4" in message
    assert list(tmp_path.iterdir()) == []


def test_a_run_with_groups_in_evaluations_works_and_its_resume_is_checked(tdmr1, source, tmp_path):
    folder = tmp_path / "run"
    reward = ["--reward", f"relative={source}"]
    settings = small("evaluation.images_per_prompt=2", "guard.enabled=false", "saving.samples_every=0")
    tdmr1("train", *reward, *settings, "--iterations", 1, "--output", folder)
    rows = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    assert {row["n"] for row in rows} == {4}
    assert [row["relative/mean"] for row in rows] == pytest.approx([0] * len(rows), abs=1e-9)

    message = refused(tdmr1("evaluate", folder, "--images-per-prompt", 1, code=2))
    assert "--images-per-prompt is 1" in message
    assert "loading" not in message
    document = json.loads(tdmr1("evaluate", folder, "--prompts", "count", "--teacher-steps", 1, "--json").stdout)
    assert {row["rewards"]["relative"]["n"] for row in document["prompt_sets"][0]["rows"]} == {4}

    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["evaluation"]["images_per_prompt"] = None
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    refused(tdmr1("train", "--resume", folder, "--iterations", 2, code=2))


def test_an_evaluation_of_a_model_is_refused_before_it_is_loaded(tdmr1, source):
    message = refused(tdmr1("evaluate", "tiny-tdm", "--reward", f"relative={source}", "--images", 8, code=2))
    assert "--images is 8 for the 36 prompts of count" in message
    assert "loading" not in message


def test_a_reward_on_a_server_is_refused_before_images_are_sampled(tdmr1, served):
    arguments = ("evaluate", "tiny-tdm", "--reward", served, "--images", 8)
    message = refused(tdmr1(*arguments, code=2, TDMR1_REWARD_TOKEN=TOKEN))
    assert "--images is 8 for the 36 prompts of count" in message
    assert "teacher" not in message


@pytest.mark.parametrize("where", ["file", "server"])
def test_try_needs_several_images_of_a_prompt(tdmr1, source, served, tmp_path, where):
    reward = source if where == "file" else served
    images = [tmp_path / f"{number}.png" for number in range(4)]
    for number, path in enumerate(images):
        Image.new("RGB", (8, 8), (40 * number,) * 3).save(path)
    Image.new("RGB", (8, 9)).save(tmp_path / "tall.png")

    def score(*arguments, code=0):
        return tdmr1("rewards", "try", reward, *arguments, code=code, TDMR1_REWARD_TOKEN=TOKEN)

    two_prompts = ["--prompt", "a", "--prompt", "b"]
    for arguments, problem in (
        (images[:1], "the prompt '' has one image"),
        ([*images[:2], *two_prompts], "the prompt 'a' has one image"),
        ([images[0], tmp_path / "tall.png", "--prompt", "a"], "the prompt 'a' has images of different sizes"),
    ):
        message = " ".join(refused(score(*arguments, code=2), "argument-invalid").split())
        assert problem in message
        assert "give several images of one size for each prompt" in message
    scored = json.loads(score(*images, *two_prompts, *two_prompts, "--json").stdout)["images"]
    if where == "file":
        assert [image["score"] for image in scored] == [-40, -40, 40, 40]
        assert {image["details"]["group"] for image in scored} == {2}
