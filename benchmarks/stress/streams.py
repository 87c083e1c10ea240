"""Broken streams: commands in new interpreters whose stdin, stdout or stderr are closed, full or not read."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

from stress import base_run
from stress.case import Case, Done, command, read, small
from stress.processes import wait
from stress.scheduler import Part

STATES = ("{} | head -1 >/dev/null", "{} >/dev/full", "{} 2>/dev/full", "{} >&-", "{} 2>&-", "{} <&- >&- 2>&-")
STATES += ("{} | true", "{} 2>&1 | head -c 1 >/dev/null", "{} >/dev/full 2>/dev/full", "{} 1<&0")
"""A folder as stdin is left out: Python itself refuses it before any code runs."""
STATES += ("{} >&- 2>/dev/full", "{} 2>&1 >/dev/full | head -1 >/dev/null", "PYTHONIOENCODING=ascii {} >/dev/null")
FAST = (
    "--help",
    "--version",
    "rewards list",
    "rewards list --json",
    "rewards info jpeg_size",
    "rewards info nope --json",
)
FAST += (
    "models list",
    "models list --json",
    "config show",
    "config presets",
    "config validate nothing.yaml",
    "plugins",
)
FAST += ("report RUN", "report RUN --json", "train --help", "nope", "train --reward nope --json")
SLOW = ("train", "train", "train", "sample RUN --prompt two --images 1 --output NEW", "export RUN --output NEW")
SLOW += ("evaluate RUN --images 2 --teacher-steps 1 --json", "doctor", "plan --model tiny-tdm")
EVERY_SLOW = 4
"""Each fourth item runs a command that imports torch."""


def run(case: Case) -> None:
    """Run a command with broken streams; the work of `train` is done in any case."""
    state = STATES[case.number % len(STATES)]
    words = case.rng.choice(SLOW if case.number % EVERY_SLOW == EVERY_SLOW - 1 else FAST)
    new = case.folder / "new"
    text = words.replace("RUN", shlex.quote(str(case.shared / "run"))).replace("NEW", shlex.quote(str(new)))
    if words == "train":
        text = shlex.join(["train", *small("iterations=1"), "--output", str(new)])
    tdmr1 = f'tdmr1() {{ {shlex.join(command())} "$@"; }}'
    line = f"{tdmr1}; " + state.format(f"tdmr1 {text}") + "; exit ${PIPESTATUS[0]}"
    out, err = case.logs()
    done = _shell(case, line, out, err, f"{state.format(words)}")
    if words == "train" and case.check(done == 0, f"{state.format(words)}: exit code {done} of a run that is complete"):
        case.check_saved(new, 1)


def _shell(case: Case, line: str, out: Path, err: Path, shown: str) -> int | None:
    with out.open("wb") as stdout, err.open("wb") as stderr, open(os.devnull) as nothing:
        process = subprocess.Popen(["bash", "-c", line], stdin=nothing, stdout=stdout, stderr=stderr)
        code = wait(process.pid, 180)
    process.returncode = -1 if code is None else code
    done = Done(code, read(out), read(err), 0.0)
    if code == 2 and not done.err:  # the error went to the broken stream
        done = Done(code, done.out, "error: lost [lost]", 0.0)
    case.judge(done, shown)
    return code


PART = Part("streams", run, seconds=5, prepare=base_run.prepare, shared=base_run.NAME)
