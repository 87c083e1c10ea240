"""The real command line in subprocesses, away from the user's own settings."""

from __future__ import annotations

import os
import subprocess
import sys

from support.paths import ROOT

SETTINGS = ("batch.groups=2", "batch.group_size=4", "evaluation.images=12", "saving.tensorboard=false")
SMALL = [part for setting in SETTINGS for part in ("--set", setting)]


def command(*arguments):
    """The console entry with these arguments."""
    return [sys.executable, "-m", "tdmr1_cli", *map(str, arguments)]


def environment(**changes):
    """The environment of a subprocess: this source tree, one thread, no hub and no user's own settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TDMR1_")}
    offline = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
    return {**kept, **offline, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1", **changes}


def run_tdmr1(*arguments, cwd=None, code=0, **changes):
    """Run the command line and expect an exit code."""
    done = subprocess.run(
        command(*arguments), cwd=cwd, env=environment(**changes), capture_output=True, text=True, timeout=600
    )
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done
