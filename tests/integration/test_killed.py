"""A run that is killed (`kill -9`) at every stage and resumed ends with the same bits as a run without a kill.

`python benchmarks/kill_test.py --output DIR --kills 50` is the large version.
"""

from __future__ import annotations

import json

import pytest
from support.command_line import run_script
from support.paths import ROOT

pytestmark = pytest.mark.integration


STAGES = ("rollout", "scoring", "fake", "surrogate", "generator", "checkpoint", "evaluation", "random")


@pytest.mark.parametrize(
    ("stages", "options"),
    [
        pytest.param(
            ("generator", "checkpoint"), ("--stages", "generator", "checkpoint", "--iterations", "3"), id="two stages"
        ),
        pytest.param(STAGES, (), marks=pytest.mark.long, id="every stage"),
    ],
)
def test_a_killed_run_ends_with_the_same_bits(tmp_path, stages, options):
    arguments = ["--output", tmp_path / "kills", "--kills", len(stages), *options]
    done = run_script(ROOT / "benchmarks" / "kill_test.py", *arguments, timeout=800)
    result = json.loads(done.stdout)
    assert result["different"] == []
    assert result["kills"] == dict.fromkeys(stages, 1)
    assert result["total"] == len(stages)
