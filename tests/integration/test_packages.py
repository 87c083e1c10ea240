"""The content of the built wheel; tests/integration/test_reward_packages.py runs it."""

from __future__ import annotations

import zipfile

import pytest

pytestmark = pytest.mark.integration


def test_the_wheel_holds_the_model_the_presets_and_the_license(wheel):
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
