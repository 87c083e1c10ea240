"""A reward with a state: checkpoints contain it, and a resume changes nothing."""

from __future__ import annotations

import json
import shutil
import sys
from functools import partial
from pathlib import Path

import pytest
from support.errors import raises, warns
from support.runs import Silent, files, rows, small_config
from support.stateful_rewards import COUNTING
from support.warm_processes import warm_processes  # noqa: F401

from tdmr1_cli.multiprocess import launch
from tdmr1_core.distributed import join_processes
from tdmr1_core.runs.checkpoints.checkpoint import REWARDS, latest_checkpoint
from tdmr1_core.runs.load_run import load_trained
from tdmr1_core.runs.run import Run
from tdmr1_rewards.calling.import_file import private_name
from tdmr1_rewards.scoring.failures import RewardFailed

pytestmark = pytest.mark.integration


def counting_config(folder: Path, *assignments: str, code: str = COUNTING, **settings: object):
    """A run of three iterations whose evaluations use the reward of the training."""
    folder.mkdir(exist_ok=True)
    (folder / "counting.py").write_text(code)
    reward = {"name": "counting", "source": f"{folder}/counting.py:Counting", **settings}
    settled = ("saving.checkpoint_every=1", "evaluation.images=1", "evaluation.every=1", "evaluation.rewards=[]")
    settled += ("guard.enabled=false", "timesteps.per_iteration=1", "batch.group_size=2")
    return small_config(*settled, *assignments, rewards=[reward])


def stop_after(run: Run, iterations: int) -> None:
    class Stopping(Silent):
        def iteration(self, report):
            run._stop = report.step == iterations

    assert not run.execute(Stopping()).finished


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return counting_config(tmp_path_factory.mktemp("reward"))


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("states") / "whole"
    Run.create(config, folder).execute(Silent())
    return folder


@pytest.fixture
def copied(whole, tmp_path) -> Path:
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def states(folder: Path) -> list[dict]:
    return json.loads((latest_checkpoint(folder / "checkpoints") / REWARDS).read_text())


def test_evaluations_do_not_change_the_state(whole):
    """The training counts one call per iteration, although every evaluation calls the reward, too."""
    assert states(whole) == [{"counting": {"calls": 3}}]
    means = [row["reward/counting/mean"] for row in rows(whole / "metrics.jsonl")]
    assert len(set(means)) == 3


def test_a_stopped_run_ends_with_the_same_bits(config, whole, tmp_path):
    folder = tmp_path / "stopped"
    run = Run.create(config, folder)
    stop_after(run, 1)
    assert states(folder) == [{"counting": {"calls": 1}}]
    stop_after(Run.resume(folder), 2)
    assert Run.resume(folder).execute(Silent()).finished
    assert files(folder) == files(whole)


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text('[{"counting": {"calls": 9}}]\n')])
def test_a_damaged_state_is_named_and_the_earlier_checkpoint_is_used(copied, damage):
    checkpoints = copied / "checkpoints"
    damage(checkpoints / "step-000003" / REWARDS)
    with warns("checkpoint-damaged", path=str(checkpoints / "step-000003" / REWARDS)):
        assert latest_checkpoint(checkpoints).name == "step-000002"


@pytest.mark.parametrize(
    ("old", "new"),
    [("load_state_dict", "forget"), ('state["calls"]', 'state["count"]')],
    ids=["no method", "the method raises"],
)
def test_a_reward_that_cannot_restore_its_state_is_named(copied, old, new):
    run = Run.resume(copied)
    source = Path(run.config.rewards[0].source.partition(":Counting")[0])
    sys.modules.pop(private_name(source), None)
    original = source.read_text()
    source.write_text(original.replace(old, new))
    try:
        with raises("reward-state", reward="counting", path=str(copied / "checkpoints" / "step-000003")):
            run.execute(Silent())
    finally:
        source.write_text(original)
        sys.modules.pop(private_name(source), None)


def test_weights_are_loaded_without_reward_states(copied):
    """`sample`, `evaluate` and `export` do not build the training rewards."""
    engine = load_trained(copied)
    assert engine.iteration_index == 3
    assert engine.reward_states == []
    engine.close()


def test_a_run_without_reward_states_has_no_state_file(tmp_path):
    stateless = COUNTING.replace("state_dict", "other")
    folder = tmp_path / "run"
    Run.create(counting_config(tmp_path / "code", "iterations=1", code=stateless), folder).execute(Silent())
    checkpoint = latest_checkpoint(folder / "checkpoints")
    assert not (checkpoint / REWARDS).exists()
    assert REWARDS not in json.loads((checkpoint / "manifest.json").read_text())["files"]


def test_a_state_that_is_not_json_stops_the_run_before_any_update(tmp_path):
    code = COUNTING.replace('{"calls": self.calls}', '{"calls": {self.calls}}')
    config = counting_config(tmp_path / "code", "evaluation.every=0", code=code)
    folder = tmp_path / "run"
    with raises("reward-state", reward="counting") as caught:
        Run.create(config, folder).execute(Silent())
    assert isinstance(caught.value, RewardFailed)
    assert latest_checkpoint(folder / "checkpoints").name == "step-000000"


def run_in_processes(folder: Path, config) -> None:
    processes = join_processes("cpu")
    Run.create(config, folder, processes=processes).execute(Silent())


def test_every_process_has_its_own_state_and_another_number_of_processes_uses_the_first(tmp_path):
    code = COUNTING.replace("self.calls += 1", "self.calls += 1 + batch.group_ids[0]")
    config = counting_config(tmp_path / "code", "iterations=2", "optimizer.final_lr=1", code=code)
    folder = tmp_path / "run"
    launch(2, partial(run_in_processes, folder, config))
    assert states(folder) == [{"counting": {"calls": 2}}, {"counting": {"calls": 4}}]
    settings = folder / "config.yaml"
    settings.write_text(settings.read_text().replace("iterations: 2", "iterations: 3"))
    with warns("reward-state", saved=2, processes=1):
        assert Run.resume(folder).execute(Silent()).finished
    ((state,),) = ([each["counting"]["calls"]] for each in states(folder))
    assert state in (3, 4, 5)
