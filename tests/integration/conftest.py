"""Fixtures for tests of packages and of run folders."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import support.small_previews  # noqa: F401
from support.packaging import Environment, build_distributions
from support.paths import ROOT


@pytest.fixture(scope="session")
def distributions(tmp_path_factory) -> tuple[Path, Path]:
    """The source distribution of tdmr1, and the wheel built from it."""
    return build_distributions(ROOT, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="session")
def wheel(distributions) -> Path:
    """The wheel of tdmr1."""
    return distributions[1]


@pytest.fixture(scope="session")
def environment(wheel, tmp_path_factory) -> Environment:
    """A new environment in which the wheel of tdmr1 is installed."""
    made = Environment(tmp_path_factory.mktemp("fresh") / "environment")
    made.install(wheel, "--no-deps", "--ignore-installed")
    return made


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    """A copy of the module's finished run, which the test may damage."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"
