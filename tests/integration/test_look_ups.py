"""How often a start loads prompt sets and looks up rewards (`benchmarks/way_in.py`)."""

from __future__ import annotations

import pytest
import way_in
from support.paths import ROOT

pytestmark = pytest.mark.integration


def test_a_start_loads_and_looks_up_everything_once():
    counts = way_in.run_profile(ROOT)["counts"]
    assert counts == {
        "prompt sets loaded": 2,  # training and held-out prompts
        "evaluation_prompts": 1,
        "reward find": 2,  # object_count and geneval
        "reward parse": 2,
        "reward registry.get": 2,
        "settings checked": 1,
        "paths made absolute": 1,
    }
