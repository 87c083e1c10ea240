"""Trainings with the rewards jpeg_size and ocr_match from the command line."""

import json

import pytest
from support.command_line import small
from support.pipelines import make_sd35

pytestmark = pytest.mark.integration


def test_jpeg_size_and_ocr_match_train_together(tdmr1, packaged_model, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text('three red circles "OK"\ntwo blue squares "NO"\none green triangle\n')
    reader = {"engine": "rapidocr", "detect": "false", "upscale": "2", "threads": "1"}
    options = [part for name, value in reader.items() for part in ("--set", f"rewards.1.options.{name}={value}")]
    rewards = ["--reward", "jpeg_size", "--reward", "ocr_match:0.5", "--prompts", prompts]
    few = [*small("batch.groups=3"), "--iterations", 1]
    tdmr1("train", *rewards, *options, *few, "--output", tmp_path / "r")
    (row,) = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    assert -5 < row["reward/jpeg_size/mean"] < -0.3
    assert 0 <= row["reward/ocr_match/mean"] <= 1
    assert row["reward/ocr_match/unjudged"] == 4  # the group whose prompt quotes nothing


def test_ocr_match_needs_no_further_settings_on_a_photo_model(tdmr1, tmp_path):
    """The reward selects the preset and the prompts."""
    shown = tdmr1("train", "--reward", "ocr_match", "--model", make_sd35(tmp_path / "model"), "--dry-run").stdout
    assert "tau_min: 0.3" in shown
    assert "name: ocr_match" in shown
