"""The content of the source distribution and the wheel; tests/integration/test_reward_packages.py runs the wheel."""

from __future__ import annotations

import sys
import tarfile
import zipfile

import pytest
from support.packaging import run

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


def test_the_wheel_has_at_most_40_megabytes(wheel):
    assert wheel.stat().st_size <= 40e6


def test_the_source_distribution_has_the_files_for_readers(distributions):
    with tarfile.open(distributions[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "SECURITY.md", "PKG-INFO"}
    assert wanted <= names
    assert not {name for name in names if name.startswith((".", "tests/"))} - {".gitignore"}


def test_the_metadata_pass_the_check_of_a_package_index(distributions):
    done = run(sys.executable, "-m", "twine", "check", "--strict", *distributions)
    assert done.stdout.count("PASSED") == 2
