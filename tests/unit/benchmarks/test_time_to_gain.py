"""The point at which a training has gained 20 points, and the tables that compare variants."""

from __future__ import annotations

import json
from argparse import Namespace
from types import SimpleNamespace

import pytest
import time_to_gain
from subjects import SUBJECTS
from support.paths import ROOT
from time_to_gain import Point, Variant, curve_of, table, train, when_gained

pytestmark = pytest.mark.unit


def curve(*values: float, seconds: float = 10.0) -> list[Point]:
    """A point every five iterations with these values of the raw generator; the averaged one never changes."""
    return [Point(5 * i, seconds * i, 480 * i, value, values[0]) for i, value in enumerate(values)]


def test_the_gain_is_interpolated_where_it_is_first_reached():
    points = curve(0.4, 0.5, 0.7, 0.55, 0.9)
    found = when_gained(points, "generator", 0.2)
    assert found is not None
    assert vars(found) == pytest.approx({"iterations": 7.5, "seconds": 15.0, "images": 720.0})
    assert when_gained(points, "generator", 0.6) is None
    assert when_gained(points, "generator_ema", 0.2) is None
    assert when_gained(curve(0.25, 0.5), "generator", 0.25) is not None


def test_the_tables_compare_with_the_first_variant():
    curves = {
        "uniform": {0: curve(0.25, 0.5), 1: curve(0.25, 0.375)},
        "teaching": {0: curve(0.25, 0.75, seconds=5), 1: curve(0.25, 0.75)},
    }
    lines = table(curves, {"uniform": [0.5, 0.25], "teaching": [1.0, 0.5]}, 0.25)
    assert "| uniform | raw | 0 | 25.0 → 50.0 | 5.0 | 480 | 10.0 |" in lines
    assert "| uniform | raw | 1 | 25.0 → 37.5 | not reached | | |" in lines
    assert "| teaching | raw | 0 | 25.0 → 75.0 | 2.5 | 240 | 2.5 |" in lines
    assert "| uniform | 37.5 | 2.00 | raw | 1 of 2 | 1.00 | 1.00 |" in lines
    assert "| teaching | 75.0 | 1.50 | raw | 1 of 2 | 0.50 | 0.25 |" in lines
    assert "| teaching | 75.0 | 1.50 | averaged | 0 of 2 | | |" in lines
    assert len({line.count("|") for line in lines if line}) == 1


def test_variants():
    assert Variant.parse(["old@abc123"]) == Variant("old", "abc123", ())
    words = ["teaching", "batch.prompts=teaching", "seed=3"]
    assert Variant.parse(words) == Variant("teaching", None, ("batch.prompts=teaching", "seed=3"))


def test_a_variant_runs_the_code_of_its_tree(tmp_path, monkeypatch):
    """Also if the script is started in another tree: `python -m` prefers the current folder to PYTHONPATH."""
    code = tmp_path / "tree"
    (code / "tdmr1_cli").mkdir(parents=True)
    (code / "tdmr1_cli" / "__init__.py").touch()
    program = "import pathlib, sys\nprint(__file__)\npathlib.Path(sys.argv[sys.argv.index('--output') + 1]).mkdir()\n"
    (code / "tdmr1_cli" / "__main__.py").write_text(program)
    monkeypatch.chdir(ROOT)
    options = Namespace(threads=1, every=5, iterations=None)
    train(tmp_path / "old-0", code, Variant.parse(["old@HEAD"]), SUBJECTS["count"], 0, options)
    assert (tmp_path / "old-0.log").read_text().strip() == str(code / "tdmr1_cli" / "__main__.py")


def test_a_curve_is_measured_until_both_generators_have_the_gain(tmp_path, monkeypatch):
    """The raw generator gains 20 points by iteration 2, the averaged one by iteration 3; 6 is the last."""
    engine = SimpleNamespace(
        config=SimpleNamespace(batch=SimpleNamespace(groups=2, group_size=3)),
        start=None,
        roles=SimpleNamespace(load=lambda *_: None),
        iteration=0,
    )

    def measure(engine, role, sheets):
        return {"exact": [0.4 + 0.1 * (engine.iteration - (role == "generator_ema" and engine.iteration > 0))]}

    def load(engine, checkpoint, **_):
        engine.iteration = int(checkpoint.name.removeprefix("step-"))

    monkeypatch.setattr("tdmr1_core.runs.load_run.load_trained", lambda folder: engine)
    monkeypatch.setattr("tdmr1_core.runs.checkpoints.checkpoint.load_checkpoint", load)
    monkeypatch.setattr(time_to_gain, "measure", measure)
    rows = [{"step": step, "time/iteration": 2.0} for step in range(1, 7)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for step in range(1, 7):
        (tmp_path / "checkpoints" / f"step-{step:06d}").mkdir(parents=True)
    sheet = SimpleNamespace(clusters=range(5))
    found = curve_of(tmp_path, sheet, "exact", 0.19)
    assert [point.iteration for point in found] == [0, 1, 2, 3, 6]
    assert [point.seconds for point in found] == [0, 2, 4, 6, 12]
    assert found[-1].images == 36
    monkeypatch.setattr(time_to_gain, "measure", None)  # the stored curve is read
    assert curve_of(tmp_path, sheet, "exact", 0.19) == found
