"""What `tdmr1 train --reward human` means on the embedded world."""

from __future__ import annotations

import pytest

from tdmr1_cli.options import Flags, resolve_settings
from tdmr1_core.config_loading import read_file, read_preset
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.plugins import discover
from tdmr1_core.prompts.sets import load_prompts, training_prompts
from tdmr1_core.tiny.world import COLOURS

pytestmark = pytest.mark.unit


def test_a_preset_is_what_it_extends_but_for_what_it_changes():
    base, human = read_preset("tiny"), read_preset("tiny-human")
    assert human["surrogate"] == base["surrogate"]
    assert human["batch"] != base["batch"]
    assert "extends" not in human


def test_a_file_may_extend_a_preset_too(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("extends: tiny\niterations: 5\n")
    assert read_file(path) == {**read_preset("tiny"), "iterations": 5}
    path.write_text("extends: tinny\n")
    with pytest.raises(Tdmr1Error, match="there is no preset 'tinny'"):
        read_file(path)


def test_people_are_asked_about_few_pictures_that_leave_the_colour_open():
    extensions = discover()
    settings = resolve_settings(Flags(rewards=["human"], model="tiny-tdm"), "train", extensions)
    assert settings.preset == "tiny-human"
    batch = settings.config.batch
    assert batch.groups * batch.group_size == 24
    assert settings.config.evaluation.rewards == ()
    prompts = load_prompts(training_prompts(settings.config, extensions), "tiny")
    assert len(prompts) == 12
    assert not any(colour in prompt.text for prompt in prompts for colour in COLOURS)


def test_another_reward_keeps_the_preset_of_the_model():
    settings = resolve_settings(Flags(rewards=["jpeg_size"], model="tiny-tdm"), "train", discover())
    assert settings.preset == "tiny"
