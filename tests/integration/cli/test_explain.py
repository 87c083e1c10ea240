"""`tdmr1 explain` and `tdmr1 compare` on a run of two iterations."""

import json

import pytest

pytestmark = pytest.mark.integration

PROMPT = "two red circles"


def test_a_run_is_explained(trained, tdmr1, tmp_path):
    folder, _ = trained
    page = tmp_path / "page.html"
    arguments = ("explain", folder, "--prompt", PROMPT, "--images", 3, "--draws", 2, "--output", page)
    done = tdmr1(*arguments, "--json")
    document = json.loads(done.stdout)
    assert (document["prompt"], document["iteration"], document["draws"]) == (PROMPT, 2, 2)
    assert [step["step"] for step in document["steps"]] == [1, 2, 3, 4]
    for step in document["steps"]:
        assert sum(step["implicit"]) == pytest.approx(0, abs=1e-6), "relative to the group"
        assert max(map(abs, step["implicit"])) > 0
        assert None not in step["reward"], "the metadata of the prompt are known"
    written = page.read_text()
    assert "after 2 iterations" in written
    assert f"“{PROMPT}”" in written


def test_the_scores_of_all_evaluated_images_are_stored(trained):
    folder, _ = trained
    rows = [json.loads(line) for line in (folder / "image_scores.jsonl").read_text().splitlines()]
    evaluations = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    assert [(row["step"], row["prompts"]) for row in rows] == [(row["step"], row["prompts"]) for row in evaluations]
    for row, evaluation in zip(rows, evaluations, strict=True):
        scores = row["scores"]["object_count"]
        assert len(scores) == sum(count for _, count in row["images"]) == evaluation["n"]
        assert sum(scores) / len(scores) == pytest.approx(evaluation["object_count/mean"])


def test_a_run_is_compared_with_a_copy(trained, tdmr1, tmp_path):
    folder, _ = trained
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("config.yaml", "metrics.jsonl", "evaluations.jsonl", "image_scores.jsonl", "guard.jsonl"):
        (copy / name).write_bytes((folder / name).read_bytes())
    document = json.loads(tdmr1("compare", folder, copy, "--json").stdout)
    gains = [each["gain_over_baseline"] for each in document["scores"] if each["run"] == "copy"]
    assert len(gains) == 2, "training and held-out prompts"
    assert all((gain["gain"], gain["low"], gain["high"], gain["paired"]) == (0, 0, 0, True) for gain in gains)
    assert document["runs"][0]["hardware"]
    assert document["runs"][0]["images"] == 16
