"""Options such as "auto" are frozen in a run's settings, so that they name what was used."""

import os
import sys
from collections import Counter
from pathlib import Path

import pytest

from tdmr1_core.config import EvaluationConfig, GuardConfig, RewardConfig, RunConfig
from tdmr1_core.models.catalog import BUILTIN_MODELS
from tdmr1_core.models.registry import ModelRegistry
from tdmr1_core.plugins import Extensions
from tdmr1_core.preflight import resolved, rewards
from tdmr1_core.preflight.resolved import freeze_rewards, resolve_run
from tdmr1_core.runs.run import Run
from tdmr1_rewards.registry import load_plugins
from tdmr1_rewards.sources import source

pytestmark = pytest.mark.unit

CHOOSY = """
import os
from tdmr1_rewards import RewardOptions, RewardSpec

class Options(RewardOptions):
    engine: str = "auto"
    upscale: float = 1.0

def freeze(options):
    return options.model_copy(update={"engine": str(os.getpid())})

SPEC = RewardSpec(
    name="choosy", summary="", factory="choosy:Options", options="choosy:Options", freeze="choosy:freeze",
    default_prompts="count",
)
"""


@pytest.fixture
def config(tmp_path):
    """A reward with an option to freeze: in this process, in another one, and for evaluations."""
    (tmp_path / "choosy.py").write_text(CHOOSY)
    choosy = f"{tmp_path}/choosy.py:SPEC"
    here = RewardConfig(name="here", source=choosy, options={"upscale": 2.0})
    elsewhere = RewardConfig(name="elsewhere", source=choosy, python=Path(sys.executable))
    counting = RewardConfig(name="object_count")
    judges = {"evaluation": EvaluationConfig(rewards=(counting, here)), "guard": GuardConfig(rewards=(here,))}
    return RunConfig(rewards=(here, elsewhere), **judges)


def test_training_and_evaluation_rewards_are_frozen_in_any_process(config):
    frozen = freeze_rewards(resolve_run(config, Extensions(load_plugins(), ModelRegistry(BUILTIN_MODELS))))
    here, elsewhere = (reward.options for reward in frozen.rewards)
    assert here == {"upscale": 2.0, "engine": str(os.getpid())}
    assert elsewhere.keys() == {"engine"}
    assert elsewhere["engine"] not in ("auto", here["engine"])
    assert [reward.options for reward in frozen.evaluation.rewards] == [{}, here]
    assert [reward.options for reward in frozen.guard.rewards] == [here]


def test_a_run_made_in_python_is_frozen(config, tmp_path):
    extensions = Extensions(load_plugins(), ModelRegistry(BUILTIN_MODELS))
    run = Run.create(config, tmp_path / "run", extensions)
    assert all(reward.options["engine"] != "auto" for reward in run.config.rewards)
    assert freeze_rewards(resolve_run(run.config, extensions)).rewards[0] == run.config.rewards[0]


def test_a_run_with_frozen_options_looks_nothing_up_again(config, tmp_path, monkeypatch):
    calls = []

    def counting(name):
        function = getattr(resolved, name)
        monkeypatch.setattr(resolved, name, lambda *given, **named: calls.append(name) or function(*given, **named))

    for name in ("load_prompt_set", "make_absolute", "check_settings"):
        counting(name)
    monkeypatch.setattr(
        rewards, "find_reward", lambda *given: calls.append("find_reward") or source.find_reward(*given)
    )
    run = Run.create(config, tmp_path / "run", Extensions(load_plugins(), ModelRegistry(BUILTIN_MODELS)))
    assert Counter(calls) == {"load_prompt_set": 2, "make_absolute": 1, "check_settings": 1, "find_reward": 3}
    assert [each.config for each in run.resolved.rewards] == list(run.config.rewards)
    assert [each.config for each in run.resolved.evaluation_rewards] == list(run.config.evaluation.rewards)
    assert [each.config for each in run.resolved.held_out_rewards] == list(run.config.guard.rewards)
    assert run.config.rewards[0].options["engine"] == str(os.getpid())
