"""What a reward changes for the whole process is restored and reported."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import types

import numpy as np
import pytest
import torch

from tdmr1_rewards.api import RewardBatch, RewardContext, RewardResult, RewardSpec
from tdmr1_rewards.calling.process_state import OF_LIBRARIES, unchanged_process
from tdmr1_rewards.calling.thread import ThreadHost
from tdmr1_rewards.errors import RewardWarning
from tdmr1_rewards.registry import Provenance, RegisteredReward, RewardRegistry, load_plugins
from tdmr1_rewards.sources.source import create_reward, find_reward, preflight
from tdmr1_rewards.testing import load_examples

pytestmark = pytest.mark.unit


def change_directory():
    os.chdir("/")


def change_environment():
    os.environ["OMP_NUM_THREADS"] = "77"
    os.environ["NEW_VARIABLE"] = "1"


def change_dtype():
    torch.set_default_dtype(torch.float64)


def change_threads():
    torch.set_num_threads(torch.get_num_threads() + 1)


def change_grad_mode():
    torch.set_grad_enabled(False)


def change_algorithms():
    torch.use_deterministic_algorithms(True)


def change_handler():
    signal.signal(signal.SIGINT, signal.SIG_IGN)


CHANGES = {
    "the current directory": change_directory,
    "environment variables (NEW_VARIABLE, OMP_NUM_THREADS)": change_environment,
    "torch's default dtype": change_dtype,
    "the number of torch's threads": change_threads,
    "torch's grad mode": change_grad_mode,
    "torch's deterministic algorithms": change_algorithms,
    "the handler of SIGINT": change_handler,
}


def state():
    return (
        os.getcwd(),
        {name: value for name, value in os.environ.items() if not name.startswith(OF_LIBRARIES)},
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        signal.getsignal(signal.SIGINT),
    )


@pytest.mark.parametrize(("what", "change"), CHANGES.items(), ids=CHANGES)
def test_a_change_is_undone_and_reported(what, change):
    before, reported = state(), []
    with unchanged_process(reported.append):
        change()
        assert state() != before
    assert state() == before
    assert reported == [what]


def test_a_change_before_an_error_is_undone_too():
    before, reported = state(), []

    def call():
        with unchanged_process(reported.append):
            change_dtype()
            raise ValueError("mistake")

    with pytest.raises(ValueError, match="mistake"):
        call()
    assert state() == before
    assert reported == ["torch's default dtype"]


def test_nothing_is_reported_without_a_change():
    reported = []
    with unchanged_process(reported.append):
        os.environ["PATH"] = os.environ["PATH"]
    assert reported == []


def test_environment_variables_can_be_kept(monkeypatch):
    monkeypatch.setenv("KEPT_VARIABLE", "old")
    reported = []
    with unchanged_process(reported.append, environment=False):
        os.environ["KEPT_VARIABLE"] = "new"
    assert os.environ["KEPT_VARIABLE"] == "new"
    assert reported == []


def test_a_reward_in_a_thread_is_reported_once(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def score(batch):
        change_directory()
        change_dtype()
        return RewardResult([1.0] * len(batch))

    images = np.zeros((2, 4, 4, 3), np.uint8)
    batch = RewardBatch(images, ["a", "b"], [{}, {}], [0, 0], [0, 1], RewardContext(None, 0, 0))
    reported = []
    host = ThreadHost(score, "array", reported.append)
    before = state()
    for _ in range(3):
        assert host.call(batch).scores == [1.0, 1.0]
        assert state() == before
    host.close()
    assert reported == ["the current directory and torch's default dtype"]


RESTLESS = """
import os, signal, torch


def restless(step):
    os.chdir("/")
    torch.set_default_dtype(torch.float64)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class Own:
    def __init__(self):
        restless("factory")

    def __call__(self, prompt, images):
        return [0.5] * len(images)


def check(preview):
    restless("preflight")
    return [None] * len(preview.prompts)


def examples():
    restless("examples")
    return []


restless("import")
"""
CHANGED = "the current directory and the handler of SIGINT and torch's default dtype"


def use(file):
    """Import, build, check and describe the reward of RESTLESS, as a run and `rewards check` do."""
    found = find_reward(RewardRegistry([]), f"{file}:Own")
    create_reward(found, {})
    module = found.spec.factory.partition(":")[0]
    names = {"factory": f"{module}:Own", "preflight": f"{module}:check", "examples": f"{module}:examples"}
    spec = RewardSpec(name="own", summary="", **names)
    registered = RegisteredReward(spec, Provenance("restless", "restless", "1", module))
    preflight(registered, None, ["a"], [{}])
    load_examples(registered)


def test_a_reward_changes_nothing_where_it_is_imported_or_built(tmp_path):
    file = tmp_path / "restless.py"
    file.write_text(RESTLESS)
    before = state()
    with pytest.warns(RewardWarning) as warned:
        use(file)
    assert state() == before
    assert [str(each.message).partition(" changes ")[2].partition(" when ")[0] for each in warned] == [CHANGED] * 4
    assert {each.message.code for each in warned} == {"reward-process-state"}


def test_torch_gets_its_own_defaults_back_if_a_reward_imports_it(tmp_path):
    (tmp_path / "early.py").write_text("import torch\ntorch.set_default_dtype(torch.float64)\ndef fn(batch): ...\n")
    code = (
        "from tdmr1_rewards.registry import RewardRegistry\n"
        "from tdmr1_rewards.sources.source import find_reward\n"
        "find_reward(RewardRegistry([]), 'early.py:fn')\n"
        "import torch\n"
        "print(torch.get_default_dtype())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "torch.float32\n"
    assert "changes torch's default dtype" in done.stderr


def test_a_plugin_changes_nothing_where_it_is_loaded(monkeypatch):
    class Entry:
        """An entry point whose module changes the current directory."""

        name, value, dist = "restless", "restless", None

        @staticmethod
        def load():
            change_directory()
            return types.SimpleNamespace()

    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [Entry])
    before = state()
    with pytest.warns(RewardWarning, match="plugin restless changes the current directory"):
        load_plugins()
    assert state() == before


def test_a_change_for_a_while_is_not_restored_by_another_reward(monkeypatch, tmp_path):
    """One reward changes the directory before another one begins, and restores it before that one ends."""
    monkeypatch.chdir(tmp_path)
    before, reported = state(), []
    with unchanged_process(reported.append):
        change_directory()
        other = unchanged_process(reported.append)
        other.__enter__()
        os.chdir(tmp_path)
    other.__exit__(None, None, None)
    assert state() == before
    assert reported == []


def test_a_call_that_hangs_does_not_stop_the_restoring_for_others(monkeypatch):
    monkeypatch.setattr("tdmr1_rewards.calling.process_state.OVERLAP_LIMIT", 0.0)
    before, reported = state(), []
    with unchanged_process(reported.append):
        with unchanged_process(reported.append):
            change_directory()
        assert state() == before
    assert reported == ["the current directory"]
