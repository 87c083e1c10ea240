"""The same global batch is the same run, whatever processes, micro-batches, stops and order of rewards: golden records.

`python benchmarks/equivalence.py --output DIR` prints the table of this, with that of single precision.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT

pytestmark = [pytest.mark.integration, pytest.mark.timeout(2400)]
GOLDEN = ROOT / "tests" / "golden" / "three_iterations.json"
REWRITE = "python benchmarks/equivalence.py --output build/equivalence --precisions fp64 --rewrite-golden"
EXACT = 1e-9
SINGLE_METRICS, SINGLE_WEIGHTS = 1e-4, 1e-6
"""In single precision: of every metric, and of the mean of all weights."""
ELSEWHERE, NORMS_ELSEWHERE = 2e-4, 1e-5
"""Relative or absolute, of the committed record: the last bit of noises, which are drawn in single precision, is the
processor's. Without vector instructions (`ATEN_CPU_CAPABILITY=default`) metrics differed by 1.4e-5, norms by 1.4e-6."""


def measured(output: Path, *arguments: str) -> dict:
    """What the script tells."""
    command = [sys.executable, ROOT / "benchmarks" / "equivalence.py", "--output", output, "--json", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> dict:
    """All members in double precision."""
    return measured(tmp_path_factory.mktemp("equivalence") / "runs", "--precisions", "fp64")


def test_every_member_of_the_class_has_the_records_of_one_process(told):
    members = told["differences"]["fp64"]
    assert {"2 processes", "1 process, then 2", "2 processes, then 1"} <= members.keys()
    assert {"micro-batch 1", "micro-batch 2", "micro-batch 4"} <= members.keys()
    assert {"rewards before sampling goes on", "rewards while sampling goes on"} <= members.keys()
    for name, distances in members.items():
        for kind, distance in distances.items():
            print(f"{name}: {kind} differ by {distance['max']:.1e} at most, {distance['mean']:.1e} on average")
            assert distance["max"] <= EXACT, (name, kind)
    nothing = {"max": 0.0, "mean": 0.0}
    assert members["stopped after every iteration"] == {"metrics": nothing, "weights": nothing}


def test_single_precision_keeps_to_its_tolerances(tmp_path):
    """In the member that is farthest off."""
    farthest = "micro-batch 1"
    told = measured(tmp_path / "runs", "--precisions", "fp32", "--members", farthest)
    distances = told["differences"]["fp32"][farthest]
    assert distances["metrics"]["max"] <= SINGLE_METRICS
    assert 0 < distances["weights"]["mean"] <= SINGLE_WEIGHTS


def test_both_stabilisers_bind(told):
    """Otherwise nothing is said of the samples that they stop."""
    metrics = told["golden"]["fp64"]["metrics"]
    assert all(0 < row["surrogate/clipped"] < 1 for row in metrics)
    assert any(row["surrogate/drifted"] > 0 for row in metrics)


def test_the_algorithm_is_the_one_of_the_committed_record(told):
    now, then = told["golden"]["fp64"], json.loads(GOLDEN.read_text())
    assert now["norms"] == pytest.approx(then["norms"], rel=NORMS_ELSEWHERE, abs=NORMS_ELSEWHERE), (
        f"if it is meant: {REWRITE}"
    )
    for one, other in zip(now["metrics"], then["metrics"], strict=True):
        assert one == pytest.approx(other, rel=ELSEWHERE, abs=ELSEWHERE), f"if it is meant: {REWRITE}"
