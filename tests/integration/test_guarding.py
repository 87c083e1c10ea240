"""The guard in a run: its log files, and how it stops the run."""

from __future__ import annotations

import json
import re

import pytest
from support.errors import raises, warns
from support.runs import Silent, small_config

from tdmr1_core.errors import RunWarning
from tdmr1_core.runs import run
from tdmr1_core.runs.evaluation import guard
from tdmr1_core.runs.evaluation.guard import GuardReading, GuardStopped, find_alarms
from tdmr1_core.runs.metrics_log import RunLog
from tdmr1_core.runs.run import Run

pytestmark = pytest.mark.integration


def test_alarms_are_counted_in_the_row_of_the_evaluated_iteration(tmp_path):
    tracker = RunLog(tmp_path, tensorboard=False)
    tracker.guard(0, {"alarms": []})
    assert not (tmp_path / "metrics.jsonl").exists()
    for step in (1, 2, 3):
        tracker.metrics(step, {"reward/mean": step / 4})
        if step == 2:
            tracker.guard(step, {"alarms": ["it is hacked", "it is hacked twice"]})
    tracker.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [
        {"step": 1, "reward/mean": 0.25},
        {"step": 2, "reward/mean": 0.5, "guard/alarms": 2},
        {"step": 3, "reward/mean": 0.75},
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["guard.jsonl", "metrics.jsonl"]


def test_without_a_good_checkpoint_none_is_named(tmp_path, monkeypatch):
    """For example if `guard.stop` was set after the first evaluations of the run."""
    monkeypatch.setattr(guard, "find_alarms", lambda *_: ("it is hacked",))
    monkeypatch.setattr(run, "mark_good", lambda *_: None)
    settings = ("guard.stop=true", "evaluation.every=1", "evaluation.images=8", "batch.group_size=2")
    with warns("guard-alarm", alarm="it is hacked"), raises("guard-stopped", good=None) as caught:
        Run.create(small_config(*settings), tmp_path / "run").execute(Silent())
    assert isinstance(caught.value, GuardStopped)


def test_an_alarm_stops_the_run_at_its_last_good_checkpoint(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    settings = ("guard.stop=true", "evaluation.every=1", "saving.keep=1", "iterations=5", "rewards.0.name=jpeg_size")
    settings += ("evaluation.rewards=[]", "evaluation.images=8", "timesteps.per_iteration=1")
    monkeypatch.setattr(guard, "find_alarms", lambda first, now, *_: ("it is hacked",) if now.step == 3 else ())
    observer = Silent()
    with (
        warns("guard-alarm", step=3, alarm="it is hacked"),
        raises("guard-stopped", step=3, alarm="it is hacked", good=str(folder / "checkpoints" / "step-000002")),
    ):
        Run.create(small_config(*settings), folder).execute(observer)
    assert len(observer.reports) == 3
    checkpoints = folder / "checkpoints"
    assert (checkpoints / "latest").read_text() == (checkpoints / "good").read_text() == "step-000002\n"
    assert sorted(path.name for path in checkpoints.glob("step-*")) == ["step-000002", "step-000003"]

    rows = [json.loads(line) for line in (folder / "guard.jsonl").read_text().splitlines()]
    assert [(row["step"], row["alarms"]) for row in rows] == [(0, []), (1, []), (2, []), (3, ["it is hacked"])]
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["guard/alarms"]) for row in metrics] == [(1, 0), (2, 0), (3, 1)]
    names = {"reward/jpeg_size", "held_out/object_count", "held_out/geneval"}
    statistics = ("edge_density", "entropy", "colourfulness", "saturation")
    names |= {f"picture/{name}" for name in statistics}
    assert names <= {key.removesuffix("/mean") for key in rows[0] if key.endswith("/mean")}

    monkeypatch.undo()
    observer = Silent()
    assert Run.resume(folder).execute(observer).finished
    assert [report.step for report in observer.reports] == [3, 4, 5]
    steps = [json.loads(line)["step"] for line in (folder / "guard.jsonl").read_text().splitlines()]
    assert steps == [0, 1, 2, 3, 4, 5]


@pytest.mark.long
def test_a_training_that_hacks_its_reward_is_stopped(tmp_path):
    """The reward prefers small files: the images lose color and detail, and match their prompts less."""
    folder = tmp_path / "run"
    settings = ("rewards.0.name=jpeg_size", "rewards.0.options.prefer=small", "evaluation.rewards=[]", "iterations=16")
    settings += ("batch.groups=6", "batch.group_size=8", "evaluation.every=4", "evaluation.images=64")
    settings += ("generator.learning_rate=1.5e-3", "surrogate.learning_rate=2e-3")
    with pytest.warns(RunWarning, match="jpeg size rose"), raises("guard-stopped"):
        Run.create(small_config(*settings, "guard.stop=true", "guard.threshold=0.4"), folder).execute(Silent())
    *quiet, last = [GuardReading.of(json.loads(line)) for line in (folder / "guard.jsonl").read_text().splitlines()]
    assert last.step > 0
    assert not any(reading.alarms for reading in quiet)
    assert re.search(r"(geneval|diversity|saturation|entropy) fell", last.alarms[0])
    assert (folder / "checkpoints" / "good").read_text() == f"step-{quiet[-1].step:06d}\n"
    assert not find_alarms(quiet[0], last, 0.4, {"jpeg_size": -1}), "a falling reward is no alarm"
