"""What a run saves for its report: scores of grids, images of groups, time and memory. None of it changes the run."""

import json
import time

import numpy as np
import pytest
from PIL import Image
from support.errors import warns
from support.runs import Silent, files, rows, small_config

from tdmr1_core.engine import Engine
from tdmr1_core.runs.output import group_images, previews
from tdmr1_core.runs.output.report import read_report
from tdmr1_core.runs.output.report_tables import machines, seconds_of
from tdmr1_core.runs.run import Run
from tdmr1_rewards.scoring.failures import RewardFailed

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two iterations with a grid of each, and the seconds that it took."""
    folder = tmp_path_factory.mktemp("run") / "run"
    started = time.monotonic()
    Run.create(small_config("iterations=2", "saving.samples_every=1"), folder).execute(Silent())
    return folder, time.monotonic() - started


def test_a_grid_has_the_scores_of_its_images(finished):
    """The grids of one weight are sampled again and scored alone."""
    folder, _ = finished
    document = json.loads((folder / "samples" / "step-000002.json").read_text())
    assert (document["columns"], document["height"], document["width"]) == (previews.COLUMNS, 24, 24)
    assert len(document["prompts"]) == previews.PROMPTS
    scores = document["scores"]["object_count"]
    assert len(scores) == previews.PROMPTS * previews.COLUMNS
    assert all(score is None or 0 <= score <= 1 for score in scores)


def test_the_best_and_the_worst_image_are_those_of_the_group_that_differs_most(finished):
    folder, _ = finished
    config = small_config("iterations=2", "saving.samples_every=1")
    with_images = Engine.from_config(config)
    trajectory = with_images.rollout(with_images.next_groups())
    scores = with_images.score(trajectory)
    with_images.close()
    totals = scores.total.view(2, 4)
    group = int(totals.std(dim=1).argmax())
    document = json.loads((folder / "samples" / "group-000001.json").read_text())
    assert document["rewards"] == totals[group].tolist()
    assert document["prompt"] == trajectory.groups.prompts[group].text
    assert document["scores"]["best"]["object_count"] == totals[group].max().item()
    assert document["scores"]["worst"]["object_count"] == totals[group].min().item()
    best = np.asarray(Image.open(folder / "samples" / "group-000001-best.png"))
    assert any(np.array_equal(best, image) for image in trajectory.images[4 * group : 4 * group + 4])


def test_time_memory_and_machine_are_recorded(finished):
    folder, seconds = finished
    report = read_report(folder)
    assert [usage.step for usage in report.usage] == [0, 1, 2]
    assert 0 < seconds_of(report) < seconds
    assert all(0.05 < usage.memory["process"] < 64 for usage in report.usage)
    (machine,) = machines(report)
    assert machine["device"] == "CPU"
    assert int(machine["CPU cores"]) > 0


def test_the_records_do_not_change_the_run(finished, tmp_path, monkeypatch):
    folder, _ = finished
    monkeypatch.setattr(previews, "score_images", lambda *_: {})
    monkeypatch.setattr(group_images.GroupImages, "tdmr1_after_scoring", lambda *_: None)
    config = small_config("iterations=2", "saving.samples_every=1")
    Run.create(config, tmp_path / "plain").execute(Silent())
    assert rows(tmp_path / "plain" / "metrics.jsonl") == rows(folder / "metrics.jsonl")
    plain, full = files(tmp_path / "plain"), files(folder)
    same = [name for name in plain if name.startswith("checkpoints") and name.endswith((".safetensors", "state.json"))]
    assert same
    assert [name for name in same if plain[name] != full[name]] == []


def test_a_reward_that_fails_on_a_grid_does_not_stop_the_run(tmp_path, monkeypatch):
    def fail(*_):
        raise RewardFailed("no answer")

    monkeypatch.setattr(previews, "score_images", fail)
    config = small_config("iterations=1", "saving.samples_every=1")
    with warns("images-unscored", step=0) as warned:
        assert Run.create(config, tmp_path / "run").execute(Silent()).finished
    steps = [getattr(each.message, "values", {}).get("step") for each in warned]
    assert [step for step in steps if step is not None] == [0, 1]
    assert json.loads((tmp_path / "run" / "samples" / "step-000001.json").read_text())["scores"] == {}
