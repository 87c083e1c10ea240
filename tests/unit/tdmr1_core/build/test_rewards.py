"""Options such as "auto" are frozen in a run's settings, so that they name what was used."""

import os
import sys
from pathlib import Path

import pytest

from tdmr1_core.config import EvaluationConfig, GuardConfig, RewardConfig, RunConfig
from tdmr1_core.models.catalog import BUILTIN_MODELS
from tdmr1_core.models.registry import ModelRegistry
from tdmr1_core.plugins import Extensions
from tdmr1_core.preflight.resolved import freeze_rewards, resolve_run
from tdmr1_core.runs.run import Run
from tdmr1_rewards.registry import load_plugins

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
    source = f"{tmp_path}/choosy.py:SPEC"
    here = RewardConfig(name="here", source=source, options={"upscale": 2.0})
    elsewhere = RewardConfig(name="elsewhere", source=source, python=Path(sys.executable))
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
