"""Comparisons of runs whose log files are written here, with values calculated by hand."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tdmr1_cli.main import main
from tdmr1_core.config import RunConfig
from tdmr1_core.config_loading import dump
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.prompts.prompt import Prompt
from tdmr1_core.runs.evaluation.evaluate import Evaluation, EvaluationImages, measure, prompt_key
from tdmr1_core.runs.looking.compare import compare, short_labels
from tdmr1_core.runs.looking.curves_plot import X_AXES, plot
from tdmr1_core.runs.looking.image_scores import pair, read_image_scores
from tdmr1_core.runs.metrics_log import RunLog

pytestmark = pytest.mark.unit

CATS, DOGS = Prompt("two cats", {}), Prompt("a dog", {"color": "red"})
PROMPTS = (CATS, CATS, DOGS, DOGS)
NOTHING = EvaluationImages(np.zeros((0, 0, 0, 3), np.uint8), (), ())
START = (0.0, 0.0, 0.5, 0.5)
HARDWARE = "2 x Card (80 GB), 16 CPU cores"
SUBJECT = ("count", "neatness")


def evaluation(scores: Sequence[float | None], prompts: Sequence[Prompt] = PROMPTS) -> Evaluation:
    """An evaluation of the reward `neatness` with these scores."""
    listed = list(scores)
    measures = {"neatness": measure(listed)}
    return Evaluation("generator_ema", "count", measures, NOTHING, {"neatness": listed}, tuple(prompts))


def write_run(
    folder: Path,
    evaluations: dict[int, Evaluation],
    *,
    noise: int = 7,
    stored: bool = True,
    header: dict[str, Any] | None = None,
    machine: dict[str, str] | None = None,
    **settings: Any,
) -> Path:
    """A run of two iterations of 2 x 3 images, of one second each, with these evaluations by iteration."""
    batch = {"groups": 2, "group_size": 3}
    base: dict[str, Any] = {"rewards": [{"name": "neatness"}], "iterations": 2, "batch": batch}
    config = RunConfig.model_validate({**base, "evaluation": {"seed": noise}, **settings})
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({"tdmr1": header or {}, **dump(config)}))
    tracker = RunLog(folder, tensorboard=False)
    for step in (1, 2):
        tracker.metrics(step, {"reward/mean": 0.5, "time/iteration": 1.0, "images_per_second": 6.0})
    if machine is not None:
        sessions = [{"step": step, "time": float(step), "memory": {}, "machine": machine} for step in (0, 1)]
        (folder / "resources.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sessions))
    for step, result in evaluations.items():
        if stored:
            tracker.image_scores(step, [result.score_row(noise)])
        tracker.evaluations(step, result.rows())
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """Two runs with the same start. The second one gains 0.25 more for every image; its best is in between."""
    final = (1.0, 0.0, 0.5, 0.5)
    first = write_run(tmp_path / "first", {0: evaluation(START), 2: evaluation(final)})
    points = {0: evaluation(START), 1: evaluation((1, 1, 1, 1)), 2: evaluation([each + 0.25 for each in final])}
    return first, write_run(
        tmp_path / "second", points, machine={"device": "Card (80 GB)", "processes": "2", "CPU cores": "16"}
    )


def test_scores_of_images_are_read_as_they_were_written(tmp_path):
    folder = write_run(tmp_path / "run", {0: evaluation((0.0, None, 0.5, 1.0))})
    found = read_image_scores(folder)["count", 0]
    cats, dogs = prompt_key(CATS), prompt_key(DOGS)
    assert found.keys == ((cats, 0), (cats, 1), (dogs, 0), (dogs, 1))
    assert found.scores == {"neatness": (0.0, None, 0.5, 1.0)}
    assert found.seed == 7
    assert cats != prompt_key(Prompt("two cats", {"color": "red"})), "metadata count"
    assert "two cats" not in (folder / "image_scores.jsonl").read_text()


def test_a_prompt_that_occurs_again_has_further_images(tmp_path):
    folder = write_run(tmp_path / "run", {0: evaluation((1, 2, 3), (CATS, DOGS, CATS))})
    cats, dogs = prompt_key(CATS), prompt_key(DOGS)
    assert read_image_scores(folder)["count", 0].keys == ((cats, 0), (dogs, 0), (cats, 1))


def test_pairs_are_images_of_the_same_prompt_and_number_with_two_scores(tmp_path):
    one = write_run(tmp_path / "one", {0: evaluation((0.0, None, 0.5, 1.0))})
    two = write_run(tmp_path / "two", {0: evaluation((0.25, 1.0, 0.125), (DOGS, CATS, CATS))})
    found = pair(read_image_scores(one)["count", 0], read_image_scores(two)["count", 0], "neatness")
    assert (found.before.tolist(), found.after.tolist()) == ([0.5, 0.0], [0.25, 1.0])
    assert found.prompts.tolist() == [prompt_key(DOGS), prompt_key(CATS)]


@pytest.mark.parametrize("scores", [[0.0, 0.0, 0.5], [float("nan")] * 4, [1.0, 2.0, 3.0, float("inf")]])
def test_a_line_with_missing_or_infinite_scores_is_skipped_with_a_warning(tmp_path, recwarn, scores):
    folder = write_run(tmp_path / "run", {0: evaluation(START)})
    row = json.loads((folder / "image_scores.jsonl").read_text())
    row["scores"]["neatness"] = scores
    (folder / "image_scores.jsonl").write_text(json.dumps(row) + "\n")
    assert read_image_scores(folder) == {}
    assert "cannot be read" in str(recwarn.pop().message)


def test_gains_are_paired_image_by_image(runs):
    comparison = compare(runs)
    one, two = comparison.standings[SUBJECT]
    assert (one.first[0], one.final[0], two.best[0]) == (0, 2, 1)
    assert (one.first[1].mean, one.final[1].mean, two.final[1].mean, two.best[1].mean) == (0.25, 0.5, 0.75, 1)
    assert one.against is None
    assert one.own is not None
    assert (one.own.gain.gain, one.own.gain.n, one.own.unpaired) == (0.25, 4, None)
    against = two.against
    assert against is not None
    assert (against.gain.gain, against.gain.low, against.gain.high, against.gain.n) == (0.25, 0.25, 0.25, 4)
    assert against.unpaired is None
    assert comparison.warnings == []
    assert comparison.settings == []


def test_an_interval_treats_the_images_of_a_prompt_as_one_cluster(tmp_path):
    """One of two prompts gains 1 with all its 8 images: a quarter of the resamples of prompts have the gain 1."""
    prompts = (CATS,) * 8 + (DOGS,) * 8
    points = {0: evaluation((0,) * 16, prompts), 2: evaluation((1,) * 8 + (0,) * 8, prompts)}
    folders = [write_run(tmp_path / name, points) for name in ("a", "b")]
    own = compare(folders).standings[SUBJECT][0].own
    assert own is not None
    assert (own.gain.gain, own.gain.low, own.gain.high) == (0.5, 0.0, 1.0)


@pytest.mark.parametrize("fault", ["old", "seed", "prompts"])
def test_a_gain_that_cannot_be_paired_says_why(tmp_path, fault):
    first = write_run(tmp_path / "first", {2: evaluation((0, 0, 0, 1))})
    other = evaluation((1, 1, 1, 0), (DOGS,) * 4 if fault != "prompts" else (Prompt("a bird", {}),) * 4)
    second = write_run(tmp_path / "second", {2: other}, noise=8 if fault == "seed" else 7, stored=fault != "old")
    against = compare([first, second]).standings[SUBJECT][1].against
    if fault == "seed":
        assert against.unpaired == "the seeds of the evaluations differ"
    elif fault == "old":
        assert against.unpaired == "the scores of single images are not stored"
    else:
        assert against.unpaired == "the evaluations have no two images in common"
    # Both means have the variance 0.25 / 4; Welch's interval has 6 degrees of freedom, where t is 2.4469.
    half = 2.4469 * np.sqrt(2 * 0.0625)
    assert against.gain.gain == 0.5
    assert (against.gain.low, against.gain.high) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-3)


def test_costs_are_those_of_all_iterations(runs):
    one, two = (run.cost for run in compare(runs).runs)
    assert (one.iterations, one.images, one.seconds, one.images_per_second) == (2, 12, 2.0, 6.0)
    assert (one.hardware, two.hardware) == (None, HARDWARE)


def test_hardware_without_a_gpu_is_the_number_of_cores(tmp_path):
    machine = {"device": "CPU", "processes": "1", "CPU cores": "2"}
    folders = [write_run(tmp_path / name, {}, machine=machine) for name in ("a", "b")]
    assert compare(folders).runs[0].cost.hardware == "2 CPU cores"


def test_the_best_score_of_a_reward_with_a_negative_weight_is_the_lowest(tmp_path):
    points = {0: evaluation((3, 3, 3, 3)), 1: evaluation((1, 1, 1, 1)), 2: evaluation((2, 2, 2, 2))}
    negative = {"rewards": [{"name": "neatness", "weight": -1.0}]}
    folders = [write_run(tmp_path / name, points, **negative) for name in ("a", "b")]
    assert compare(folders).standings[SUBJECT][0].best[1].mean == 1


UNFAIR = {
    "model": ({"header": {"content": {"base": "x"}}}, "started from other weights"),
    "sampling": ({"rollout": {"steps": 8}}, "images were made in another way"),
    "prompts": ({"header": {"prompts": {"evaluations": "x"}}}, "belong to other prompts"),
    "images": ({"noise": 8}, "belong to other images"),
    "rewards": ({"rewards": [{"name": "neatness", "options": {"a": 1}}]}, "scores do not mean the same"),
    "weights": ({"rewards": [{"name": "neatness", "weight": 2.0}]}, "had other aims"),
    "training seed": ({"seed": 1}, "is chance"),
    "budget": ({"batch": {"groups": 4, "group_size": 3}}, "unequal budgets"),
    "versions": ({"header": {"versions": {"torch": "9"}}}, "for this reason alone"),
}


@pytest.mark.parametrize("aspect", UNFAIR)
def test_an_unfair_comparison_says_so(tmp_path, aspect):
    changes, expected = UNFAIR[aspect]
    first = write_run(tmp_path / "first", {2: evaluation(START)})
    second = write_run(tmp_path / "second", {2: evaluation(START)}, **changes)
    warnings = compare([first, second]).warnings
    assert any(expected in warning for warning in warnings), warnings
    assert all(warning.startswith("first and second differ in the ") for warning in warnings)


def test_settings_that_differ_are_listed_with_the_values_of_all_runs(tmp_path):
    rates = (1e-4, 1e-4, 2e-4)
    folders = [
        write_run(tmp_path / str(rate), {2: evaluation(START)}, generator={"learning_rate": value})
        for rate, value in enumerate(rates)
    ]
    found = compare(folders).settings
    assert [(each.name, each.values) for each in found] == [("generator.learning_rate", rates)]


def test_labels_are_as_short_as_possible(tmp_path):
    folders = [tmp_path / "a" / "run", tmp_path / "b" / "run", tmp_path / "other"]
    assert short_labels(folders) == ["a/run", "b/run", "other"]


def test_a_comparison_needs_two_different_runs(runs):
    with pytest.raises(Tdmr1Error, match="needs two runs"):
        compare(runs[:1])
    with pytest.raises(Tdmr1Error, match="is named twice"):
        compare([runs[0], runs[1], runs[0].parent / "second" / ".." / "first"])


def test_the_command_prints_costs_scores_and_differences(runs, capsys):
    assert main(["compare", *map(str, runs)]) == 0
    printed = capsys.readouterr().out
    for text in ("2 of 2", "6.000", HARDWARE, "not recorded", "neatness on count", "over first"):
        assert text in printed, text
    assert "+0.250 [0.250, 0.250] (4 pairs)" in printed
    assert "1.000 ± 0.000 at 1" in printed
    assert "not paired" not in printed
    assert "They do not cover another training seed." in printed


def test_the_command_says_what_is_unfair_and_not_paired(runs, tmp_path, capsys):
    third = write_run(tmp_path / "third", {2: evaluation(START)}, stored=False, rollout={"steps": 8})
    assert main(["compare", str(runs[0]), str(third)]) == 0
    printed = capsys.readouterr().out
    assert "not paired: third: the scores of single images are not stored" in printed
    assert "not a fair comparison: first and third differ in the size or sampling of the images" in printed
    assert "rollout.steps" in printed


def test_json_and_csv_have_all_values(runs, tmp_path, capsys):
    target = tmp_path / "table.csv"
    assert main(["compare", *map(str, runs), "--json", "--csv", str(target)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["baseline"] == "first"
    score = document["scores"][1]
    assert score["gain_over_baseline"] == {"gain": 0.25, "low": 0.25, "high": 0.25, "n": 4, "paired": True}
    assert (score["best"]["iteration"], score["best"]["mean"]) == (1, 1.0)
    assert document["runs"][0]["hardware"] is None
    assert document["unfair"] == document["different_settings"] == []
    first, second = csv.DictReader(io.StringIO(target.read_text()))
    assert (first["run"], first["own_gain"], first["against_gain"]) == ("first", "0.25", "")
    assert (second["against_paired"], second["images_per_second"], second["hardware"]) == ("True", "6.0", HARDWARE)


def test_a_run_without_evaluations_has_a_row_of_costs(runs, tmp_path, capsys):
    empty = write_run(tmp_path / "empty", {})
    target = tmp_path / "table.csv"
    assert main(["compare", str(runs[0]), str(empty), "--csv", str(target)]) == 0
    rows = list(csv.DictReader(io.StringIO(target.read_text())))
    assert (rows[1]["run"], rows[1]["final_mean"], rows[1]["images"]) == ("empty", "", "12")
    assert main(["compare", str(empty), str(write_run(tmp_path / "empty2", {}))]) == 0
    assert "no run has an evaluation" in capsys.readouterr().out


def test_a_folder_that_is_not_a_run_is_named(runs, tmp_path, capsys):
    assert main(["compare", str(runs[0]), str(tmp_path)]) == 2
    assert f"{tmp_path} is not a run folder" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_plot_is_a_file_of_its_format_and_the_same_again(runs, tmp_path, suffix):
    target = tmp_path / f"plot{suffix}"
    assert main(["compare", *map(str, runs), "--plot", str(target)]) == 0
    content = target.read_bytes()
    assert content.startswith(b"\x89PNG" if suffix == ".png" else b"<?xml")
    assert plot(compare(runs), suffix) == content
    if suffix == ".svg":
        for text in ("neatness on count", "iteration", "first", "second", "mean ± standard error"):
            assert f">{text}<" in content.decode(), text


def test_the_axes_of_a_plot_are_iterations_images_and_minutes(runs):
    run = compare(runs).runs[0]
    assert [place(run, 1) for place in X_AXES.values()] == [1, 6, 1 / 60]
    assert b"training images" in plot(compare(runs), ".svg", "images")


def test_a_plot_without_evaluations_is_refused(tmp_path):
    folders = [write_run(tmp_path / name, {}) for name in ("a", "b")]
    with pytest.raises(Tdmr1Error, match="nothing to plot"):
        plot(compare(folders), ".png")


def test_a_plot_of_another_format_or_without_matplotlib_is_refused(runs, tmp_path, capsys, monkeypatch):
    assert main(["compare", *map(str, runs), "--plot", str(tmp_path / "plot.jpg")]) == 2
    assert "must be a .png or .svg file" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["compare", *map(str, runs), "--plot", str(tmp_path / "plot.png")]) == 2
    printed = capsys.readouterr().err
    assert "a plot needs matplotlib, which is not installed" in printed
    assert "hint: pip install 'tdmr1[plots]'" in printed
    assert not (tmp_path / "plot.png").exists()
