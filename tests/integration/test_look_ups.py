"""The start-up path of `tdmr1 train`: its length, and the number of look-ups (`benchmarks/way_in.py`)."""

from __future__ import annotations

import pytest
import way_in
from support.paths import ROOT

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def profile():
    """The profile of `tdmr1 train` from its first line to the first evaluation."""
    return way_in.run_profile(ROOT)


def test_a_start_loads_and_looks_up_everything_once(profile):
    assert profile["counts"] == {
        "prompt sets loaded": 2,  # training and held-out prompts
        "evaluation_prompts": 1,
        "reward find": 2,  # object_count and geneval
        "reward parse": 2,
        "reward registry.get": 2,
        "settings checked": 1,
        "paths made absolute": 1,
    }


def test_the_start_up_path_meets_its_goals(profile):
    missed = [row for row in way_in.path_rows(profile) if not row[2] <= row[1] <= row[3]]
    assert missed == []
