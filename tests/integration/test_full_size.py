"""The benchmark of full-size architectures runs at a tiny size."""

import json
import os
import subprocess
import sys

import pytest
from support.paths import ROOT

pytestmark = pytest.mark.integration


def test_every_stage_is_measured():
    size = ["--architecture", "tiny-tdm", "--size", "24", "--group-size", "2", "--precision", "fp32", "--checkpointing"]
    command = [sys.executable, ROOT / "benchmarks" / "full_size.py", *size]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert set(document["stages"]) == {"rollout", "fake", "surrogate", "generator"}
    assert all(stage["images_per_second"] > 0 for stage in document["stages"].values())
    assert document["estimated_activations"] > 0
    assert document["measured_growth"] is None, "a CPU's peak can't be taken for a stage"


def test_a_size_that_cannot_be_drawn_is_refused():
    command = [sys.executable, ROOT / "benchmarks" / "full_size.py", "--size", "516"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert "this model needs multiples of 16" in done.stderr
