"""What pip installs: the built wheel runs by itself."""

from __future__ import annotations

import json
import sys
import zipfile

import pytest
from support.packaging import SMALL, pip_install, run

pytestmark = pytest.mark.integration


def test_the_wheel_holds_the_model_the_presets_and_the_licence(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for folder in ("tiny", "tiny/words_model", "tiny/pairs_model"):
        assert f"tdmr1_core/{folder}/pipeline/transformer/diffusion_pytorch_model.safetensors" in names
        assert f"tdmr1_core/{folder}/student/pytorch_lora_weights.safetensors" in names
    assert "tdmr1_core/presets/tiny.yaml" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    metadata = next(name for name in names if name.endswith("METADATA"))
    assert "License-Expression: Apache-2.0" in zipfile.ZipFile(wheel).read(metadata).decode()
    assert not [name for name in names if name.startswith(("tests", "examples", "benchmarks"))]
    weights = sum(entry.file_size for entry in zipfile.ZipFile(wheel).infolist() if "tiny/" in entry.filename)
    assert weights <= 37e6


def test_the_wheel_trains_evaluates_and_exports(wheel, tmp_path):
    environment = pip_install(wheel, tmp_path / "site")
    python = [sys.executable, "-c", "import tdmr1_core; print(tdmr1_core.__file__)"]
    assert str(tmp_path / "site") in run(*python, env=environment, cwd=tmp_path).stdout
    tdmr1 = [sys.executable, "-m", "tdmr1_cli"]
    run(*tdmr1, "train", "--iterations", "1", "--output", "r", *SMALL, env=environment, cwd=tmp_path)
    shown = run(
        *tdmr1, "evaluate", "r", "--images", "2", "--teacher-steps", "1", "--json", env=environment, cwd=tmp_path
    )
    assert json.loads(shown.stdout)
    run(*tdmr1, "export", "r", env=environment, cwd=tmp_path)
    assert (tmp_path / "r" / "export" / "pytorch_lora_weights.safetensors").stat().st_size > 1e6
