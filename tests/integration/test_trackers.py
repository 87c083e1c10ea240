"""Real trackers: what they store of a run and of its resume, and trackers that fail."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support.command_line import run_tdmr1, small
from support.errors import warns
from support.own_environment.layered import layered_environment
from support.own_environment.layered import run as run_program
from support.paths import ROOT, TESTS
from support.runs import Silent, small_config

from tdmr1_core.preflight import trackers
from tdmr1_core.runs.metrics_log import EVALUATIONS, GUARD, METRICS
from tdmr1_core.runs.run import Run
from tdmr1_core.runs.tracking import client
from tdmr1_core.runs.tracking.client import Trackers
from tdmr1_core.runs.tracking.state import load_tracked_run

pytestmark = pytest.mark.integration
HERE = TESTS / "support" / "trackers"
SETTINGS = ("iterations=4", "saving.checkpoint_every=2", "saving.samples_every=2", "evaluation.every=2")
SETTINGS += ("timesteps.per_iteration=1", "tracking_tags=[mine]", "guard.enabled=true")
SECRET = "0123456789abcdef0123456789abcdef01234567"
FAKES = {
    "wandb": """
class Settings:
    def __init__(self, **_): pass
def init(**_): raise RuntimeError("no network")
""",
    "trackio": """
class Run:
    def log(self, values, step): raise ValueError("refused")
    def finish(self): print("finished")
config = {}
def init(**_): return Run()
""",
    "swanlab": """
import time
class Settings:
    def __init__(self, **_): pass
def init(**_): time.sleep(600)
""",
}


class Killed(BaseException):
    """The run ends without a checkpoint, as if it were killed."""


class KilledAfter(Silent):
    def __init__(self, step: int) -> None:
        super().__init__()
        self._step = step

    def iteration(self, report: Any) -> None:
        if report.step == self._step:
            raise Killed


@pytest.fixture(scope="module")
def environments(tmp_path_factory):
    """Makes interpreters with the packages of a requirements file."""

    def make(requirements: str) -> Path:
        return layered_environment(tmp_path_factory.mktemp("trackers") / "environment", HERE / requirements)

    return make


@pytest.fixture
def offline(tmp_path, monkeypatch) -> None:
    """Trackers store runs on this machine. There are keys, which no file may contain."""
    variables = {
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "WANDB_MODE": "offline",
        "SWANLAB_MODE": "offline",
        "COMET_START_ONLINE": "0",
        "MLFLOW_TRACKING_URI": f"file:{tmp_path / 'mlruns'}",
        "MLFLOW_ALLOW_FILE_STORE": "true",
        **dict.fromkeys(("WANDB_API_KEY", "SWANLAB_API_KEY", "COMET_API_KEY"), SECRET),
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def read(python: Path, tracker: str, place: str | Path) -> dict[str, Any]:
    """The only run that a tracker has stored."""
    done = run_program([str(python), str(HERE / "read_tracked.py"), tracker, str(place)], env=dict(os.environ))
    (run,) = json.loads(done.stdout.splitlines()[-1])["runs"].values()
    return run


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def check_numbers(run: dict[str, Any], folder: Path) -> None:
    """Each line of the log files was stored once, whatever was repeated."""
    counts = Counter((row["step"], name) for row in run["rows"] for name in row if name != "step")
    assert set(counts.values()) == {1}
    for row in rows(folder, METRICS):
        for name in ("reward/mean", "loss/fake", "images_per_second"):
            (stored,) = [each[name] for each in run["rows"] if each["step"] == row["step"] and name in each]
            if name != "images_per_second":  # that of the iteration that was sent first
                assert stored == pytest.approx(row[name])
    evaluated = {row["step"] for row in rows(folder, EVALUATIONS)}
    assert evaluated == {0, 2, 4}
    assert {step for step, name in counts if name.startswith("evaluation/")} == evaluated
    assert {step for step, name in counts if name == "guard/alarms"} == {row["step"] for row in rows(folder, GUARD)}
    assert sorted(run["images"]) == [0, 2, 4, 4]  # the last one is before_after.png
    assert run["config"]["batch.groups"] == 2
    assert run["config"]["rewards.0.name"] == "object_count"


STORES = {"wandb": "tracking", "trackio": None, "swanlab": "tracking", "mlflow": None, "comet": "tracking"}
"""The folder in the run folder in which a tracker stores offline runs; None for those that have a store elsewhere."""


@pytest.mark.parametrize(
    ("names", "requirements"),
    [
        (("wandb", "trackio"), "requirements.txt"),
        pytest.param(("swanlab", "mlflow", "comet"), "requirements-long.txt", marks=pytest.mark.long),
    ],
)
def test_trackers_store_a_killed_and_resumed_run_once(
    tmp_path, monkeypatch, environments, offline, names, requirements
):
    python, folder = environments(requirements), tmp_path / "run"
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(trackers, "find_spec", lambda name: name)
    monkeypatch.setattr(Run, "_save_after_error", lambda *_: None)
    with pytest.raises(Killed):
        Run.create(small_config(f"tracking={list(names)}", *SETTINGS), folder).execute(KilledAfter(3))
    first = {name: load_tracked_run(folder, name) for name in names}
    assert {name: run.sent.get("metrics") for name, run in first.items()} == dict.fromkeys(names, 3)
    Run.resume(folder).execute(Silent())
    assert {name: load_tracked_run(folder, name).id for name in names} == {name: first[name].id for name in names}
    for name, place in STORES.items():
        if name in names:
            stored = read(python, name, "tdmr1" if place is None else folder / place)
            check_numbers(stored, folder)
            tags = stored["config"]["tags"].split(", ") if name == "trackio" else stored["tags"]
            assert sorted(tags) == ["mine", "object_count", "tiny-tdm", "train"]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []


def test_trackers_that_fail_or_block_stop_neither_the_run_nor_each_other(tmp_path, monkeypatch):
    for name, code in FAKES.items():
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    monkeypatch.setattr(client, "EXIT_LIMIT", 60)
    folder = tmp_path / "run"
    folder.mkdir()
    tracked = Trackers(folder, small_config("tracking=[wandb, trackio, swanlab, tensorboard]"), closing_limit=10)
    slowest = 0.0
    for step in range(1, 4):
        began = time.monotonic()
        tracked.numbers(METRICS, step, {"reward/mean": step / 4})
        slowest = max(slowest, time.monotonic() - began)
    assert slowest < 2
    with warns("tracker-failed", tracker="wandb") as recorded:
        tracked.close()
    texts = sorted(str(warning.message).partition(" (")[0] for warning in recorded)
    assert texts == [
        "tracker swanlab did not end within 10 s; it lacks 3 events or more",
        "tracker trackio does not accept the metrics of iteration 1: refused",
        "tracker trackio lacks 3 events of the run",
        "tracker wandb cannot be started: no network",
    ]
    board = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = board.EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("reward/mean")] == [(1, 0.25), (2, 0.5), (3, 0.75)]
    assert "finished" in (folder / "tracking" / "output.txt").read_text()


def test_a_run_whose_trackers_end_at_once_is_complete(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text("import os; os._exit(3)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with warns("tracker-failed", tracker="tensorboard"):
        result = Run.create(small_config("tracking=[tensorboard]"), tmp_path / "run").execute(Silent())
    assert result.finished
    assert [row["step"] for row in rows(tmp_path / "run", METRICS)] == [1, 2, 3]


def test_a_missing_tracker_is_refused_before_torch_is_loaded(tmp_path):
    done = run_tdmr1("train", *small("tracking=[comet]"), "--output", tmp_path / "run", code=2)
    assert "pip install 'tdmr1[comet]'" in done.stderr
    assert "loading torch" not in done.stderr
    assert not (tmp_path / "run").exists()
