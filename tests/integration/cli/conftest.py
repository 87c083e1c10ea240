"""A short run on the packaged model, which several tests use."""

import pytest
from support.command_line import SMALL, run_tdmr1
from support.paths import ROOT

PACKAGED_MODEL = ROOT / "tdmr1_core" / "tiny" / "pipeline" / "model_index.json"


@pytest.fixture(scope="session")
def tdmr1():
    """`tdmr1(*arguments, code=0, cwd=None, **variables)` runs the command line with these environment variables."""
    return run_tdmr1


@pytest.fixture(scope="session")
def packaged_model():
    """Fails unless the packaged model exists."""
    assert PACKAGED_MODEL.is_file(), "the packaged model is missing"


@pytest.fixture(scope="session")
def trained(packaged_model, tmp_path_factory):
    """The folder of a finished run of two iterations, and the completed command."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    return folder, run_tdmr1("train", *SMALL, "--iterations", 2, "--output", folder)
