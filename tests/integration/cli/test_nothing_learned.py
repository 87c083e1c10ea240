"""A run that cannot learn stops early with the reason; a run that learned nothing does not exit with 0."""

import json
import shutil

import pytest
import yaml
from support.command_line import small

pytestmark = pytest.mark.integration

FEW = small("evaluation.images=1", "saving.samples_every=0", "guard.enabled=false")
REWARDS = """
from tdmr1_rewards import RewardResult

def constant(batch):
    return RewardResult([1.0] * len(batch))

def blind(batch):
    return RewardResult([None] * len(batch), [{"reason": "it is too dark"}] * len(batch))
"""


@pytest.fixture
def rewards(tmp_path):
    """The file with the rewards `constant` and `blind`."""
    path = tmp_path / "own.py"
    path.write_text(REWARDS)
    return path


def test_a_run_whose_rewards_never_differ_exits_with_1_and_is_kept(tdmr1, rewards, tmp_path):
    folder = tmp_path / "run"
    done = tdmr1("train", *FEW, "--reward", f"{rewards}:constant", "--iterations", 2, "--output", folder, code=1)
    assert "[nothing-learned]" in done.stderr
    assert "no group has two different rewards" in done.stderr
    assert (folder / "checkpoints" / "latest").read_text() == "step-000002\n"
    assert "gain" in done.stdout
    assert "[nothing-learned]" in tdmr1("train", "--resume", folder, code=1).stderr


@pytest.mark.parametrize("on_failure", ["stop", "skip"])
def test_a_run_without_a_score_in_its_first_iteration_stops_with_the_reason(tdmr1, rewards, tmp_path, on_failure):
    folder = tmp_path / "run"
    arguments = [*FEW, "--reward", f"{rewards}:blind", "--iterations", 2, "--output", folder]
    done = tdmr1("train", *arguments, "--set", f"rewards.0.on_failure={on_failure}", code=2)
    assert "[nothing-scored]" in done.stderr
    assert "it is too dark (8 images" in done.stderr
    assert (folder / "checkpoints" / "latest").read_text() == "step-000000\n"


def test_prompts_that_the_reward_cannot_score_are_refused_before_loading(tdmr1, tmp_path):
    (tmp_path / "walls.txt").write_text("a wall\nanother wall\n")
    (tmp_path / "routed.jsonl").write_text('{"prompt": "two red circles", "rewards": ["jpegsize"]}\n')
    words = ("--model", "tiny-words-tdm", "--reward", "ocr_match", "--prompts", tmp_path / "walls.txt")
    routed = ("--reward", "jpeg_size", "--prompts", tmp_path / "routed.jsonl")
    for arguments, code in ((words, "[nothing-scored]"), (routed, "[reward-metadata]")):
        for verb in (("train",), ("train", "--dry-run")):
            done = tdmr1(*verb, *arguments, "--output", tmp_path / "run", code=2)
            assert code in done.stderr
            assert "loading torch" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_truncated_prompts_are_reported(tdmr1, tmp_path):
    path = tmp_path / "long.txt"
    path.write_text('a very long description of a wall with many small things and then a sign "CAT"\na sign "DOG"\n')
    settings = {"model": {"name": "tiny-words-tdm"}, "rewards": [{"name": "ocr_match"}]}
    settings |= {"prompts": {"train": str(path), "evaluate": str(path)}}
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings))
    validated = tdmr1("config", "validate", tmp_path / "settings.yaml")
    sampled = tdmr1("sample", "tiny-words-tdm", "--prompts", path, "--images", 1, "--output", tmp_path / "images")
    for done in (validated, sampled):
        assert done.stderr.count("[prompts-truncated]") == 1
        assert "1 of 2 prompts" in done.stderr
    assert "'ocr_match' looks for a text that is ignored" in validated.stderr


def test_sampling_does_not_need_prompts_that_a_reward_can_score(tdmr1, tmp_path):
    path = tmp_path / "walls.jsonl"
    path.write_text('{"prompt": "a wall", "rewards": ["of_another_run"]}\n')
    tdmr1("sample", "tiny-tdm", "--prompts", path, "--images", 1, "--steps", 1, "--output", tmp_path / "images")
    assert (tmp_path / "images" / "000-a-wall-00.png").is_file()


def test_model_human_without_enough_answers_stops_at_once_with_the_numbers(tdmr1, tmp_path):
    options = ("--set", "rewards.0.options.mode=model", "--prompts", "count")
    done = tdmr1("train", *FEW, "--reward", "human", *options, "--output", tmp_path / "run", code=2)
    assert "needs 40 answers, 10 of each kind; found 0" in done.stderr
    assert "[feedback-empty]" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_finished_run_is_extended(trained, tdmr1, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained[0], folder)
    done = tdmr1("train", "--resume", folder, "--iterations", 3)
    assert "iterations was 2 and is now 3" in done.stderr
    assert [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert (config["iterations"], config["optimizer"]["lr_iterations"]) == (3, 2)
    (row,) = [line for line in done.stdout.splitlines() if "count-held-out" in line]
    assert "–" not in row, "the gain compares each image with that of the first evaluation"
    assert f"next: tdmr1 evaluate {folder}" in done.stderr
    assert "[resume-settings]" in tdmr1("train", "--resume", folder, "--iterations", 2, code=2).stderr


def test_a_preset_without_a_reward_names_those_that_fit(tdmr1):
    done = tdmr1("train", "--model", "sd3.5-tdm", "--preset", "ocr", "--dry-run", code=2)
    assert "[setting-invalid]" in done.stderr
    assert "ocr_match" in done.stderr.splitlines()[-1]
