"""An exception anywhere in a run leaves a checkpoint of the last complete iteration, from which a resume is exact."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from support.errors import raises, warns
from support.runs import Silent, files, rows, small_config
from support.stateful_rewards import COUNTING

from tdmr1_cli.error_boundary import guarded
from tdmr1_cli.progress import Quiet
from tdmr1_cli.run_command import _execute as execute
from tdmr1_core.engine import Engine
from tdmr1_core.plugins import Hooks
from tdmr1_core.runs import run as run_module
from tdmr1_core.runs.checkpoints.checkpoint import LATEST, REWARDS, checkpoint_folders
from tdmr1_core.runs.evaluation.evaluator import Evaluator
from tdmr1_core.runs.metrics_log import METRICS, RunLog
from tdmr1_core.runs.run import Run
from tdmr1_core.stages.scoring import ScoringStage
from tdmr1_rewards.errors import Tdmr1Error

pytestmark = pytest.mark.integration

SETTINGS = ("iterations=2", "batch.group_size=2", "timesteps.per_iteration=1", "evaluation.images=1")
SETTINGS += (
    "evaluation.every=1",
    "evaluation.rewards=[]",
    "guard.rewards=[{name: object_count}]",
    "saving.samples_every=1",
)


@pytest.fixture(scope="module")
def reward(tmp_path_factory) -> str:
    """A reward with a state, which a resume restores."""
    path = tmp_path_factory.mktemp("reward") / "counting.py"
    path.write_text(COUNTING)
    return f"{path}:Counting"


@pytest.fixture(scope="module")
def create(reward):
    """`create(folder, checkpoint_every)` is a new run of two iterations, each with evaluation, guard and grid."""

    def create(folder: Path, checkpoint_every: int) -> Run:
        settings = (*SETTINGS, "saving.keep=10", f"saving.checkpoint_every={checkpoint_every}")
        return Run.create(small_config(*settings, rewards=[{"name": "counting", "source": reward}]), folder)

    return create


@pytest.fixture(scope="module")
def undisturbed(create, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    create(folder, 1).execute(Silent())
    return folder


def failing(monkeypatch, owner: object, name: str, at: int, error: BaseException) -> None:
    """Make the at-th call of a function raise; of `Hooks`, the at-th call of the hook with this name."""
    function = "call" if owner is Hooks else name
    real, calls = getattr(owner, function), itertools.count(1)

    def sometimes(*arguments, **keywords):
        if (owner is not Hooks or arguments[1] == name) and next(calls) == at:
            raise error
        return real(*arguments, **keywords)

    monkeypatch.setattr(owner, function, sometimes)


def half_a_row(tracker: RunLog, step: int, values: object) -> None:
    """A write of metrics that fails in the middle of a line."""
    with (tracker.folder / METRICS).open("a") as file:
        file.write(f'{{"step": {step}, "rew')
    raise RuntimeError("the metrics")


def check_checkpoint(folder: Path, undisturbed: Path, step: int) -> None:
    """Check that the last checkpoint has the bits of the undisturbed run after this iteration."""
    name = (folder / "checkpoints" / LATEST).read_text().strip()
    assert name == f"step-{step:06d}"
    for file in ("weights.safetensors", "optimizers.safetensors", REWARDS):
        if step:
            expected = (undisturbed / "checkpoints" / name / file).read_bytes()
            assert (folder / "checkpoints" / name / file).read_bytes() == expected


def check_resume(folder: Path, undisturbed: Path) -> None:
    """Check that a resume ends with every file of the undisturbed run."""
    assert Run.resume(folder).execute(Silent()).finished
    ended = files(folder)
    expected = {name: content for name, content in files(undisturbed).items() if "checkpoints" not in name}
    assert {name: ended[name] for name in expected if name != "config.yaml"} == {
        name: content for name, content in expected.items() if name != "config.yaml"
    }
    check_checkpoint(folder, undisturbed, 2)


PLACES = {
    "a hook after the scores, with a new reward state": (Hooks, "tdmr1_after_scoring", 2, RuntimeError("a hook"), 1),
    "a hook after an iteration": (Hooks, "tdmr1_after_iteration", 1, Tdmr1Error("a plugin"), 1),
    "an observer after an iteration": (Silent, "iteration", 1, BrokenPipeError("an observer"), 1),
    "the first evaluation": (Evaluator, "evaluate", 1, Tdmr1Error("an evaluation"), 0),
    "the guard": (Evaluator, "read_guard", 2, ValueError("the guard"), 1),
    "a grid": (run_module, "save_preview", 2, OSError("a grid"), 1),
    "out of memory": (Engine, "rollout", 2, MemoryError(), 1),
    "Ctrl-C": (Engine, "advantages", 2, KeyboardInterrupt(), 1),
    "an exit": (ScoringStage, "collect_with_states", 2, SystemExit(0), 1),
}
LONG = ("a hook after an iteration", "a grid", "an observer after an iteration", "out of memory", "the guard")
"""Places that only `make test-long` tries."""


@pytest.mark.filterwarnings("ignore:the guard ignores")
@pytest.mark.parametrize(
    "place", [pytest.param(name, marks=pytest.mark.long) if name in LONG else name for name in PLACES]
)
def test_the_last_complete_iteration_is_saved(create, undisturbed, tmp_path, monkeypatch, place):
    owner, name, at, error, saved = PLACES[place]
    failing(monkeypatch, owner, name, at, error)
    with pytest.raises(type(error)):
        create(tmp_path / "run", 100).execute(Silent())
    assert len(checkpoint_folders(tmp_path / "run" / "checkpoints")) == 1
    check_checkpoint(tmp_path / "run", undisturbed, saved)
    if saved:
        assert [row["step"] for row in rows(tmp_path / "run" / METRICS)] == [1]
    if place in ("a grid", "a hook after the scores, with a new reward state"):
        monkeypatch.undo()
        check_resume(tmp_path / "run", undisturbed)


@pytest.mark.filterwarnings("ignore:the guard ignores")
def test_metrics_that_were_half_written_are_completed(create, undisturbed, tmp_path, monkeypatch):
    monkeypatch.setattr(RunLog, "metrics", half_a_row)
    with pytest.raises(RuntimeError, match="the metrics"):
        create(tmp_path / "run", 100).execute(Silent())
    monkeypatch.undo()
    check_resume(tmp_path / "run", undisturbed)


@pytest.mark.filterwarnings("ignore:the guard ignores")
def test_an_error_in_the_middle_of_an_update_saves_nothing(create, undisturbed, tmp_path, monkeypatch):
    failing(monkeypatch, Hooks, "tdmr1_after_fake_update", 2, RuntimeError("between two roles"))
    with pytest.raises(RuntimeError, match="between two roles"):
        create(tmp_path / "run", 1).execute(Silent())
    monkeypatch.undo()
    check_checkpoint(tmp_path / "run", undisturbed, 1)
    check_resume(tmp_path / "run", undisturbed)


@pytest.mark.filterwarnings("ignore:the guard ignores")
def test_a_failed_save_is_reported_beside_the_error(create, tmp_path, monkeypatch):
    failing(monkeypatch, Engine, "rollout", 2, Tdmr1Error("the rollout", code="out-of-memory"))
    failing(monkeypatch, run_module, "save_checkpoint", 1, Tdmr1Error("the disk is full", code="not-writable"))
    with warns("not-writable", step=1) as warned, raises("out-of-memory"):
        create(tmp_path / "run", 100).execute(Silent())
    assert "iteration 1 could not be saved: the disk is full" in str([each.message for each in warned])
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.filterwarnings("ignore:the guard ignores")
def test_the_message_names_checkpoint_and_command(create, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    failing(monkeypatch, Quiet, "started", 1, RuntimeError("a fault"))
    run = create(folder, 100)
    assert guarded(lambda: execute(run, quiet=True) or 0, as_json=True) == 1
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["message"].startswith("internal error: RuntimeError: a fault (")
    assert f"saved up to step-000000; continue with `tdmr1 train --resume {folder}`" in error["hint"]
