"""What pip installs: the built wheel runs by itself, and a stranger's reward package is found and used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
SMALL = ["batch.groups=2", "batch.group_size=4", "evaluation.images=12", "saving.tensorboard=false"]


def run(*command: str, **options) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, **options)
    assert done.returncode == 0, done.stderr + done.stdout
    return done


def pip_install(source: Path, target: Path) -> dict[str, str]:
    """Install a package into a folder of its own; returns the environment that sees it first."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    run(*pip, "--target", str(target), str(source))
    return {**os.environ, "PYTHONPATH": str(target)}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT))
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_the_model_the_presets_and_the_licence(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "tdmr1_core/tiny/pipeline/transformer/diffusion_pytorch_model.safetensors" in names
    assert "tdmr1_core/tiny/student/pytorch_lora_weights.safetensors" in names
    assert "tdmr1_core/presets/tiny.yaml" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    metadata = next(name for name in names if name.endswith("METADATA"))
    assert "License-Expression: Apache-2.0" in zipfile.ZipFile(wheel).read(metadata).decode()
    assert not [name for name in names if name.startswith(("tests", "examples", "benchmarks"))]
    weights = sum(entry.file_size for entry in zipfile.ZipFile(wheel).infolist() if "tiny/" in entry.filename)
    assert weights <= 25e6


def test_the_wheel_trains_evaluates_and_exports(wheel, tmp_path):
    environment = pip_install(wheel, tmp_path / "site")
    python = [sys.executable, "-c", "import tdmr1_core; print(tdmr1_core.__file__)"]
    assert str(tmp_path / "site") in run(*python, env=environment, cwd=tmp_path).stdout
    tdmr1 = [sys.executable, "-m", "tdmr1_cli"]
    sets = [part for setting in SMALL for part in ("--set", setting)]
    run(*tdmr1, "train", "--iterations", "1", "--output", "r", *sets, env=environment, cwd=tmp_path)
    shown = run(
        *tdmr1, "evaluate", "r", "--images", "12", "--teacher-steps", "2", "--json", env=environment, cwd=tmp_path
    )
    assert json.loads(shown.stdout)
    run(*tdmr1, "export", "r", env=environment, cwd=tmp_path)
    assert (tmp_path / "r" / "export" / "pytorch_lora_weights.safetensors").stat().st_size > 1e6


def test_a_strangers_package_is_found_and_trains(tmp_path):
    environment = pip_install(ROOT / "examples" / "reward_plugin", tmp_path / "site")
    tdmr1 = [sys.executable, "-m", "tdmr1_cli"]
    listed = json.loads(run(*tdmr1, "rewards", "list", "--json", env=environment, cwd=tmp_path).stdout)
    assert "red_share" in json.dumps(listed)
    assert "tdmr1-red-share" in json.dumps(listed)
    sets = [part for setting in SMALL for part in ("--set", setting)]
    command = [*tdmr1, "train", "--reward", "red_share:0.3", "--reward", "object_count:0.7", "--iterations", "1"]
    run(*command, "--output", "r", *sets, env=environment, cwd=tmp_path)
    (row,) = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    assert 0 < row["reward/red_share/mean"] < 1
    expected = 0.3 * row["reward/red_share/mean"] + 0.7 * row["reward/object_count/mean"]
    assert row["reward/mean"] == pytest.approx(expected)
