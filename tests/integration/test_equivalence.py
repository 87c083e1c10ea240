"""The same global batch gives the same run for any number of processes, micro-batch, stops and order of rewards.

`python benchmarks/equivalence.py --output DIR` prints the table of the differences, also in single precision.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.command_line import run_script
from support.paths import ROOT

pytestmark = [pytest.mark.integration, pytest.mark.timeout(2400)]
GOLDEN = ROOT / "tests" / "golden" / "three_iterations.json"
REWRITE = "python benchmarks/equivalence.py --output build/equivalence --precisions fp64 --rewrite-golden"
TWO = "2 processes"
EXACT = 1e-9
SINGLE_METRICS, SINGLE_WEIGHTS = 1e-4, 1e-6
"""Tolerances in single precision: of every metric, and of the mean difference of all weights."""
ELSEWHERE, NORMS_ELSEWHERE = 2e-4, 1e-5
"""Relative and absolute tolerances for the committed record. The noises are drawn in single precision, and their last
bit depends on the processor. Without vector instructions (`ATEN_CPU_CAPABILITY=default`) metrics differed by 1.4e-5 and
norms by 1.4e-6."""


def measured(output: Path, *arguments: str) -> dict:
    """The JSON output of the script."""
    script = ROOT / "benchmarks" / "equivalence.py"
    done = run_script(script, "--output", output, "--json", *arguments, timeout=2400)
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def double_precision(tmp_path_factory) -> dict:
    """One process and two, in double precision."""
    return measured(tmp_path_factory.mktemp("equivalence") / "runs", "--precisions", "fp64", "--variants", TWO)


def check(variants: dict) -> None:
    """Check that each variant has the records of one process."""
    for name, distances in variants.items():
        for kind, distance in distances.items():
            print(f"{name}: {kind} differ by {distance['max']:.1e} at most, {distance['mean']:.1e} on average")
            assert distance["max"] <= EXACT, (name, kind)


def test_two_processes_have_the_records_of_one(double_precision):
    variants = double_precision["differences"]["fp64"]
    assert variants.keys() == {TWO}
    assert variants[TWO].keys() == {"metrics", "weights", "evaluations"}
    check(variants)


@pytest.mark.long
def test_every_variant_has_the_records_of_one_process(tmp_path):
    variants = measured(tmp_path / "runs", "--precisions", "fp64")["differences"]["fp64"]
    assert {"2 processes", "1 process, then 2", "2 processes, then 1"} <= variants.keys()
    assert {"2 processes, sharded", "2 processes, sharded, then 1", "1 process, then 2, sharded"} <= variants.keys()
    assert {"micro-batch 1", "micro-batch 2", "micro-batch 4"} <= variants.keys()
    assert {"rewards before sampling continues", "rewards after all sampling"} <= variants.keys()
    assert {"teaching prompts, 2 processes", "teaching prompts, 2 processes, then 1"} <= variants.keys()
    check(variants)
    nothing = {"max": 0.0, "mean": 0.0}
    for prefix in ("", "teaching prompts, "):
        assert variants[f"{prefix}stopped after every iteration"] == {
            "metrics": nothing,
            "weights": nothing,
            "evaluations": nothing,
        }


@pytest.mark.long
def test_single_precision_is_within_its_tolerances(tmp_path):
    """Tested in the variant with the largest differences."""
    farthest = "micro-batch 1"
    document = measured(tmp_path / "runs", "--precisions", "fp32", "--variants", farthest)
    distances = document["differences"]["fp32"][farthest]
    assert distances["metrics"]["max"] <= SINGLE_METRICS
    assert 0 < distances["weights"]["mean"] <= SINGLE_WEIGHTS


def test_both_stabilizers_are_active(double_precision):
    """Otherwise the record does not cover them."""
    metrics = double_precision["golden"]["fp64"]["metrics"]
    assert all(0 < row["surrogate/clipped"] < 1 for row in metrics)
    assert any(row["surrogate/drifted"] > 0 for row in metrics)


def test_the_algorithm_matches_the_committed_record(double_precision):
    now, then = double_precision["golden"]["fp64"], json.loads(GOLDEN.read_text())
    assert now["norms"] == pytest.approx(then["norms"], rel=NORMS_ELSEWHERE, abs=NORMS_ELSEWHERE), (
        f"if the change is intended: {REWRITE}"
    )
    for one, other in zip(now["metrics"], then["metrics"], strict=True):
        assert one == pytest.approx(other, rel=ELSEWHERE, abs=ELSEWHERE), f"if the change is intended: {REWRITE}"
