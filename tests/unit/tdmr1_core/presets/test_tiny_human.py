"""The preset of `tdmr1 train --reward human` on the embedded model."""

from __future__ import annotations

import pytest
from support.errors import raises

from tdmr1_core.config_loading import read_file, read_preset
from tdmr1_core.plugins import discover
from tdmr1_core.preflight.layers import Flags, resolve_settings
from tdmr1_core.tiny.world import COLOURS

pytestmark = pytest.mark.unit


def test_a_preset_changes_only_some_settings_of_the_preset_it_extends():
    base, human = read_preset("tiny"), read_preset("tiny-human")
    assert human["surrogate"] == base["surrogate"]
    assert human["batch"] != base["batch"]
    assert "extends" not in human


def test_a_file_may_extend_a_preset(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("extends: tiny\niterations: 5\n")
    assert read_file(path) == {**read_preset("tiny"), "iterations": 5}
    path.write_text("extends: tinny\n")
    with raises("preset-unknown", name="tinny"):
        read_file(path)


def test_people_see_few_images_of_prompts_without_a_color():
    extensions = discover()
    settings = resolve_settings(Flags(rewards=["human"], model="tiny-tdm"), "train", extensions)
    assert settings.preset == "tiny-human"
    batch = settings.config.batch
    assert batch.groups * batch.group_size == 24
    assert settings.config.evaluation.rewards == ()
    prompts = settings.prompts.prompts
    assert len(prompts) == 12
    assert not any(colour in prompt.text for prompt in prompts for colour in COLOURS)


def test_another_reward_uses_the_preset_of_the_model():
    settings = resolve_settings(Flags(rewards=["jpeg_size"], model="tiny-tdm"), "train", discover())
    assert settings.preset == "tiny"
