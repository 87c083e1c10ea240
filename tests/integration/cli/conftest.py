"""The real command line in subprocesses, and one short run on the packaged model that several tests look at."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
PACKAGED_MODEL = REPOSITORY / "tdmr1_core" / "tiny" / "pipeline" / "model_index.json"
SETTINGS = ("batch.groups=2", "batch.group_size=4", "evaluation.images=12", "saving.tensorboard=false")
SMALL = [part for setting in SETTINGS for part in ("--set", setting)]


def command(*arguments):
    """The console entry with these arguments."""
    return [sys.executable, "-m", "tdmr1_cli", *map(str, arguments)]


def environment(**changes):
    """The environment of a subprocess: this source tree, one thread, no hub and no user's own settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TDMR1_")}
    offline = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
    return {**kept, **offline, "PYTHONPATH": str(REPOSITORY), "PYTHONUTF8": "1", **changes}


def run_tdmr1(*arguments, cwd=None, code=0, **changes):
    """Run the command line and expect an exit code."""
    done = subprocess.run(
        command(*arguments), cwd=cwd, env=environment(**changes), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="session")
def tdmr1():
    """`tdmr1(*arguments, code=0, cwd=…, ENVIRONMENT=…)`."""
    return run_tdmr1


@pytest.fixture(scope="session")
def packaged_model():
    """The embedded model, without which nothing can be drawn."""
    if not PACKAGED_MODEL.is_file():
        pytest.skip("the packaged model is not there")


@pytest.fixture(scope="session")
def trained(packaged_model, tmp_path_factory):
    """The folder of a finished run of two iterations, and what the command line said about it."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    return folder, run_tdmr1("train", *SMALL, "--iterations", 2, "--output", folder)
