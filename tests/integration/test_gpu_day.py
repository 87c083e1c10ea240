"""The script that measures a GPU: its control flow with a stand-in for Python, and its parts at toy size on the CPU."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import gpu_day
import pytest
from full_size import ENTRIES
from gpu_day_models import CASES, settings
from gpu_day_tables import PARTS, tables
from support.paths import ROOT

from tdmr1_core.planning.known_sizes import known_update, point_of

pytestmark = pytest.mark.integration

STAND_IN = """#!/bin/sh
# Called as: benchmarks/gpu_day.py PART --output DIR [--toy], or benchmarks/gpu_day_tables.py DIR
case "$1" in *tables.py) echo "the tables"; exit 0 ;; esac
echo "$2" >>"$4/calls"
if [ "$2" = paired ] && [ ! -e "$4/repaired" ]; then echo "no luck"; exit 1; fi
echo '{"finished": true}' >"$4/$2.json"
"""
TIMEOUT = """#!/bin/sh
# Called as: timeout -k SECONDS LIMIT COMMAND…
echo "$3" >>"$LIMITS"
shift 3
exec "$@"
"""


def run(output, *arguments, **environment):
    command = [ROOT / "benchmarks" / "gpu_day.sh", "--output", output, "--toy", *map(str, arguments)]
    variables = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, capture_output=True, text=True, env=variables)


@pytest.fixture
def stand_ins(tmp_path):
    """Environment variables that replace Python and `timeout`."""
    for name, text in (("python", STAND_IN), ("timeout", TIMEOUT)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    return {"PYTHON": str(tmp_path / "python"), "PATH": path, "LIMITS": str(tmp_path / "limits")}


def test_a_failed_part_is_named_and_only_it_is_measured_again(tmp_path, stand_ins):
    output = tmp_path / "output"
    done = run(output, **stand_ins)
    assert done.returncode == 1
    assert set((output / "calls").read_text().split()) == set(PARTS)
    assert re.search(r"== paired: \d+ s, exit code 1\nno luck", done.stderr)
    assert done.stderr.rstrip().splitlines()[-1].startswith("not complete: paired (")
    assert done.stdout == (output / "tables.md").read_text() == "the tables\n"
    (output / "repaired").touch()
    (output / "calls").unlink()
    assert run(output, **stand_ins).returncode == 0
    assert (output / "calls").read_text() == "paired\n"


def test_a_part_gets_no_more_than_the_time_that_is_left(tmp_path, stand_ins):
    assert (
        run(
            tmp_path / "output",
            "--seconds",
            30,
            **stand_ins,
        ).returncode
        == 1
    )
    limits = list(map(int, (tmp_path / "limits").read_text().split()))
    assert len(limits) == len(PARTS)
    assert max(limits) <= 30


def test_without_time_no_part_begins_and_all_are_named(tmp_path, stand_ins):
    done = run(tmp_path / "output", "--seconds", 5, **stand_ins)
    assert done.returncode == 1
    assert all(f"== {part}: no time left" in done.stderr for part in PARTS)
    assert not (tmp_path / "limits").exists()


def test_an_unknown_option_is_refused(tmp_path):
    assert run(tmp_path, "--fast").returncode == 2


@pytest.mark.parametrize(
    "parts", ["card,sd3.5-tdm", pytest.param(",".join(PARTS), marks=pytest.mark.long)], ids=["two parts", "all"]
)
def test_parts_are_measured_at_toy_size(tmp_path, parts):
    done = run(tmp_path / "output", "--only", parts, "--seconds", 900, COMMIT="abc1234")
    assert done.returncode == 0, done.stderr
    assert "commit `abc1234`" in done.stdout
    assert "their numbers mean nothing" in done.stdout
    assert "| sd3, 64 px | 2 × 2 | merged LoRA |" in done.stdout
    assert "sd3.5-tdm, attention cudnn: memory.attention is cudnn, but torch" in done.stdout
    document = json.loads((tmp_path / "output" / "sd3.5-tdm.json").read_text())
    assert set(document["rows"]) == set(CASES["sd3.5-tdm"].variants)
    missing = [part for part in PARTS if part not in parts.split(",")]
    assert (f"Not complete: {', '.join(missing)}." in done.stdout) == bool(missing)


def test_a_row_that_fails_does_not_stop_the_others_and_is_measured_again(tmp_path, capfd):
    results = gpu_day.Results(tmp_path, "card", {"device": "x"})

    def fail():
        raise RuntimeError("out of memory")

    results.measure("one", fail)
    results.measure("two", lambda: {"value": 2})
    results.write(finished=not results.failed)
    assert results.failed == ["one"]
    assert "RuntimeError: out of memory" in capfd.readouterr().err
    again = gpu_day.Results(tmp_path, "card", {"device": "x"})
    again.measure("two", lambda: pytest.fail("it is measured"))
    again.measure("one", lambda: {"value": 1})
    assert {name: row["value"] for name, row in again.rows.items()} == {"one": 1, "two": 2}


def test_results_of_another_commit_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu_day.py", "card", "--toy", "--output", str(tmp_path)])
    monkeypatch.setenv("COMMIT", "one")
    assert gpu_day.main() == 0
    monkeypatch.setenv("COMMIT", "two")
    assert gpu_day.main() == 2
    assert "name another folder" in capsys.readouterr().err


@pytest.mark.parametrize("part", CASES)
def test_the_estimates_at_full_size_are_known_so_that_the_card_does_not_wait(part):
    case = CASES[part]
    for name, config in settings(case).items():
        assert known_update(ENTRIES[case.model], point_of(config, ENTRIES[case.model], 32)) is not None, name


def test_the_tables_compute_utilisation_and_the_error_of_the_plan(tmp_path):
    stage = {"images_per_second": 8.0, "peak_bytes": 2e10, "growth_bytes": 1e10, "warm_up_seconds": 1.0}
    row = {"model": "m", "size": 512, "images": 24, "micro_batch": 12, "images_per_second": 2.0, "tflops": 150.0}
    row |= {"peak_bytes": 2e10, "estimated_bytes": 1.1e10, "measured_bytes": 1e10, "warm_up_seconds": 4.0}
    row |= {"stages": dict.fromkeys(("rollout", "fake", "surrogate", "generator"), stage)}
    about = {"device": "Card", "driver": "1", "cuda": "13", "commit": "abc", "toy": False}
    about["versions"] = {"torch": "2", "diffusers": "3", "peft": "4"}
    for part, rows in (("card", {"matmul": {"tflops": 600.0}}), ("sd3.5-tdm", {"defaults": row})):
        document = {"part": part, "context": about, "rows": rows, "finished": True}
        (tmp_path / f"{part}.json").write_text(json.dumps(document))
    text = "\n".join(tables(tmp_path))
    assert "Card, driver 1 with CUDA 13, torch 2, diffusers 3, peft 4, commit `abc`." in text
    assert "| m, 512 px | 24 × 12 | defaults | 8 | 8 | 8 | 8 | 2 | 150 | 25 % | 20.0 GB | 4 s |" in text
    assert "| m, 512 px, micro-batch 12 | defaults | 11.00 GB | 10.00 GB | +10.0 % |" in text
    assert "their numbers mean nothing" not in text


def test_the_tables_of_an_empty_folder_say_so(tmp_path):
    assert list(tables(tmp_path)) == ["Nothing was measured."]
