"""A run that is killed (`kill -9`) at every stage and resumed ends with the same bits as a run without a kill.

This is the small version; the large one is `python benchmarks/kill_test.py --output DIR --kills 50`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from support.paths import ROOT

pytestmark = pytest.mark.integration


def test_a_run_killed_at_every_stage_ends_with_the_same_bits(tmp_path):
    command = [sys.executable, ROOT / "benchmarks" / "kill_test.py", "--output", tmp_path / "kills", "--kills", "8"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert result["different"] == []
    stages = ("rollout", "scoring", "fake", "surrogate", "generator", "checkpoint", "evaluation", "random")
    assert result["kills"] == dict.fromkeys(stages, 1)
    assert result["total"] == 8
