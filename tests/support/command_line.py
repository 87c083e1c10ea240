"""Runs the real command line without the user's settings: in forks of a warm process, or in new subprocesses."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable

from support.paths import ROOT, TESTS
from support.warm_cli import WarmCli, WarmProcess

SETTINGS = ("batch.groups=2", "batch.group_size=4", "timesteps.per_iteration=1", "evaluation.images=4")
SETTINGS += ("saving.tensorboard=false",)


def changed(settings: Iterable[str], *changes: str) -> list[str]:
    """The options `--set NAME=VALUE` of settings, of which some have another value."""
    last = {setting.partition("=")[0]: setting for setting in (*settings, *changes)}
    return [part for setting in last.values() for part in ("--set", setting)]


def small(*changes: str) -> list[str]:
    """The options of a small run with further or other settings."""
    return changed(SETTINGS, *changes)


SMALL = small()


AT_START = dict(os.environ)
"""The environment before libraries and `main` set variables in this process. Commands start without those variables."""


def command(*arguments):
    """The command of a subprocess that runs `tdmr1` with these arguments."""
    return [sys.executable, "-m", "tdmr1_cli", *map(str, arguments)]


def environment(**changes):
    """The environment of a subprocess: this source tree, one thread, no hub and no settings of the user."""
    kept = {name: value for name, value in AT_START.items() if not name.startswith("TDMR1_")}
    offline = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
    return {**kept, **offline, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1", **changes}


def without_bitsandbytes(variables):
    """These variables, with the `sitecustomize` of tests/support/lean."""
    return variables | {"PYTHONPATH": os.pathsep.join([str(TESTS / "support" / "lean"), variables["PYTHONPATH"]])}


warm = WarmCli(environment())
"""One server for each pytest process, started by the first command and closed at the end of the session."""


def run_tdmr1(*arguments, cwd=None, code=0, fresh=False, **changes):
    """Run the command line and expect an exit code (None: any); `fresh` starts a new interpreter."""
    variables = environment(**changes)
    if fresh or not warm.can_run(variables):
        variables = without_bitsandbytes(variables)
        done = subprocess.run(command(*arguments), cwd=cwd, env=variables, capture_output=True, text=True, timeout=600)
    else:
        done = warm.run(arguments, variables, cwd=cwd, timeout=600)
    assert code is None or done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done


def run_script(path, *arguments, cwd=None, timeout=600, **changes):
    """Run a Python file in a fork and expect exit code 0."""
    done = warm.run(arguments, environment(**changes), cwd=cwd, script=path, timeout=timeout)
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def start_tdmr1(
    *arguments, fresh=False, stdout=None, stderr=None, closed=(), **changes
) -> subprocess.Popen | WarmProcess:
    """Start the command line in the background; `stdout` and `stderr` are as in `subprocess.Popen`.

    The descriptors in `closed` are closed; this needs a fork.
    """
    variables = environment(**changes)
    if fresh or not warm.can_run(variables):
        variables = without_bitsandbytes(variables)
        return subprocess.Popen(command(*arguments), env=variables, stdout=stdout, stderr=stderr, text=True)
    return warm.start(arguments, variables, stdout=stdout, stderr=stderr, closed=closed)
