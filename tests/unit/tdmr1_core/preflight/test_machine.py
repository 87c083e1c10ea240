"""What a dry run checks about this machine."""

import sys
from pathlib import Path

import pytest
from support.errors import raises

from tdmr1_core.config import EvaluationConfig, MemoryConfig, RewardConfig, RunConfig
from tdmr1_core.engine import Engine
from tdmr1_core.preflight.machine import check_machine
from tdmr1_core.preflight.resolved import resolve_run

pytestmark = pytest.mark.unit

NEEDY = """
from tdmr1_rewards import RewardSpec

SPEC = RewardSpec(
    name="needy", summary="", factory="needy:make", requires=("no_such_module|no_other", "torch"), install="needy[all]",
    default_prompts="count",
)
"""


@pytest.fixture
def needy(tmp_path):
    """A reward that needs a package that is not installed."""
    (tmp_path / "needy.py").write_text(NEEDY)
    return f"{tmp_path}/needy.py:SPEC"


def test_a_run_that_needs_nothing_more_passes():
    check_machine(resolve_run(RunConfig(rewards=(RewardConfig(name="object_count"),))))


def test_a_missing_package_of_a_reward_is_named(needy):
    counting, wanting = RewardConfig(name="object_count"), RewardConfig(name="needy", source=needy)
    for config in (RunConfig(rewards=(wanting,)), _evaluated(counting, wanting)):
        with raises("dependency-missing", module="no_such_module", install="needy[all]"):
            check_machine(resolve_run(config))


def _evaluated(trained, evaluated):
    return RunConfig(rewards=(trained,), evaluation=EvaluationConfig(rewards=(evaluated,)))


def test_a_cache_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    memory = MemoryConfig(prompt_cache=tmp_path / "file" / "cache")
    config = RunConfig(rewards=(RewardConfig(name="object_count"),), memory=memory)
    with raises("not-writable", existing=str(tmp_path / "file")) as caught:
        check_machine(resolve_run(config))
    assert "memory.prompt_cache" in caught.value.hint
    assert Path(caught.value.values["folder"]) == memory.prompt_cache


def test_compilation_without_a_compiler_is_refused(monkeypatch):
    config = RunConfig(rewards=(RewardConfig(name="object_count"),), memory=MemoryConfig(compile=True))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with raises("dependency-missing", program="no-such-compiler"):
        check_machine(resolve_run(config))
    with raises("dependency-missing", program="no-such-compiler"):
        Engine.from_config(config)
    monkeypatch.setenv("CXX", sys.executable)
    check_machine(resolve_run(config))
