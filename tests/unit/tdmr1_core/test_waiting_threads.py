"""How the CPU threads of torch wait, and that the settings of the user have priority."""

import os
import re
import subprocess
import sys

import pytest

import tdmr1_core
from tdmr1_cli.main import main
from tdmr1_core.distributed import set_waiting
from tdmr1_core.errors import Tdmr1Error

pytestmark = pytest.mark.unit

SHORT = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
LOADED = "from tdmr1_core.distributed import set_waiting; set_waiting(); import torch"


@pytest.fixture
def variables(monkeypatch):
    """The environment without settings of the waiting. It is restored after the test."""
    for name in SHORT:
        monkeypatch.setenv(name, "")  # so that a variable that the test sets is removed
        monkeypatch.delenv(name)
    return monkeypatch


def waiting():
    return {name: os.environ[name] for name in SHORT if name in os.environ}


@pytest.mark.parametrize("given", [{}, {"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "0"}])
def test_threads_wait_briefly_unless_the_user_decided(given, variables):
    for name, value in given.items():
        variables.setenv(name, value)
    set_waiting()
    assert waiting() == (given or SHORT)


def test_commands_and_trainings_from_python_set_it(variables):
    assert main(["--version"]) == 0
    assert waiting() == SHORT
    for name in SHORT:
        variables.delenv(name)
    with pytest.raises(Tdmr1Error):
        tdmr1_core.train(model="no-such-model")
    assert waiting() == SHORT


@pytest.mark.skipif(sys.platform != "linux", reason="torch has GNU's OpenMP on Linux only")
def test_openmp_reads_it():
    environment = {name: value for name, value in os.environ.items() if name not in SHORT}
    done = subprocess.run(
        [sys.executable, "-c", LOADED],
        env={**environment, "OMP_DISPLAY_ENV": "verbose"},
        capture_output=True,
        text=True,
        check=True,
    )
    shown = dict(re.findall(r"(\w+) = '(\w*)'", done.stderr))
    assert {name: shown[name] for name in SHORT} == SHORT, shown
