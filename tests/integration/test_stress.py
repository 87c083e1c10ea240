"""A few items of the stress test; `make stress` runs thousands."""

from __future__ import annotations

import json

import pytest
from support.command_line import run_script
from support.paths import ROOT

pytestmark = pytest.mark.integration

PARTS = ("kills", "mutations", "configurations", "images", "requests", "clients", "iterations", "rewards", "disks")
PARTS += ("streams", "ranks")
FEW = {"mutations": 2, "configurations": 1, "images": 20, "requests": 20, "rewards": 1, "streams": 2}
MORE = {"kills": 3, "mutations": 40, "configurations": 10, "images": 300, "requests": 300, "clients": 20}
MORE |= {"iterations": 60, "rewards": 12, "disks": 5, "streams": 14, "ranks": 3}


@pytest.mark.parametrize(
    ("counts", "seed"), [(FEW, 1), pytest.param(MORE, 2, marks=pytest.mark.long)], ids=["few", "more"]
)
def test_items_of_the_stress_test_have_no_faults(tmp_path, counts, seed):
    options = [word for part in PARTS for word in (f"--{part}", counts.get(part, 0))]
    script = ROOT / "benchmarks" / "stress_kit.py"
    done = run_script(script, "--output", tmp_path / "stress", "--workers", 1, "--seed", seed, *options, timeout=2400)
    assert "No faults." in done.stdout
    rows = [json.loads(line) for line in (tmp_path / "stress" / "items.jsonl").read_text().splitlines()]
    assert len({row["part"] for row in rows}) == len(counts) + ("mutations" in counts)
