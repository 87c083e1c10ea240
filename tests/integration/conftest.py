"""What the tests of packages share, and those of run folders."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import support.small_previews  # noqa: F401
from support.packaging import Environment, build_wheel
from support.paths import ROOT


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    """tdmr1's own wheel, built from this source tree."""
    return build_wheel(ROOT, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="session")
def environment(wheel, tmp_path_factory) -> Environment:
    """A fresh environment with tdmr1's wheel in it."""
    made = Environment(tmp_path_factory.mktemp("fresh") / "environment")
    made.install(wheel, "--no-deps", "--ignore-installed")
    return made


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    """A copy of a module's finished run, to be damaged."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"
