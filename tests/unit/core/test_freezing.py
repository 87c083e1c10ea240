"""What "auto" stands for is kept in a run's settings, so that they say what was used."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from tdmr1_core.config import EvaluationConfig, RewardConfig, RunConfig
from tdmr1_core.stages.scoring import freeze_rewards
from tdmr1_rewards.registry import load_plugins

pytestmark = pytest.mark.unit


def test_rewards_and_judges_are_frozen_but_those_of_another_environment(monkeypatch):
    monkeypatch.setattr(
        "tdmr1_rewards.builtin.ocr_match.open_engine", lambda options, device: SimpleNamespace(name="rapidocr")
    )
    here = RewardConfig(name="ocr_match", options={"upscale": 2.0})
    elsewhere = RewardConfig(name="other", source="ocr_match", python=Path("/other/python"))
    counting = RewardConfig(name="object_count")
    config = RunConfig(rewards=(here, elsewhere), evaluation=EvaluationConfig(rewards=(counting, here)))
    frozen = freeze_rewards(config, load_plugins().rewards)
    chosen = {"upscale": 2.0, "engine": "rapidocr"}
    assert [reward.options for reward in frozen.rewards] == [chosen, {}]
    assert [reward.options for reward in frozen.evaluation.rewards] == [{}, chosen]
