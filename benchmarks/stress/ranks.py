"""Hung processes of a run with `--processes 2`: stopped, killed or interrupted ones never leave a process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable

from stress.case import Case, Done, command, read, small, steps_of
from stress.processes import children_of, name_of, wait
from stress.scheduler import Part

ITERATIONS = 5
START = 400.0
"""Seconds until the first iteration at most."""
END = 150.0
"""Seconds that a disturbed run, and then each of its processes, may take to end: an iteration is finished and saved."""


def run(case: Case) -> None:
    """Disturb a run after its first checkpoint."""
    disturb = DISTURBANCES[case.number % len(DISTURBANCES)]
    folder = case.folder / "run"
    out, err = case.logs()
    words = ["train", *small(f"iterations={ITERATIONS}"), "--processes", 2, "--output", folder]
    began = time.monotonic()
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(command(*words), stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr)
    saved = folder / "checkpoints" / "latest"
    while not saved.exists() and time.monotonic() < began + START:
        time.sleep(0.05)
    time.sleep(case.rng.uniform(0, 1))
    ranks = [child for child in sorted(children_of(process.pid)) if "spawn_main" in name_of(child)]
    if not case.check(len(ranks) == 2 and saved.exists(), f"no checkpoint in {START:.0f} s, {len(ranks)} processes"):
        wait(process.pid, 0)
        return
    allowed = disturb(case, process.pid, ranks)
    code = wait(process.pid, END)
    process.returncode = -1 if code is None else code
    case.judge(Done(code, read(out), read(err), time.monotonic() - began), disturb.__name__.strip("_"), allowed, END)
    if code == 0:
        case.check(steps_of(folder) == list(range(1, ITERATIONS + 1)), "metrics of iterations are lost")
    else:
        resumed = case.tdmr1("train", "--resume", folder, allowed=[0])
        case.check(
            steps_of(folder) == list(range(1, ITERATIONS + 1)), f"after a resume ({resumed.code}), metrics are lost"
        )
    case.faults = [f"{disturb.__name__.strip('_')}: {fault}" for fault in case.faults]


def _stopped_for_a_while(case: Case, launcher: int, ranks: list[int]) -> list[int]:
    os.kill(ranks[1], signal.SIGSTOP)
    time.sleep(case.rng.uniform(2, 6))
    os.kill(ranks[1], signal.SIGCONT)
    return [0]


def _stopped_and_interrupted_twice(case: Case, launcher: int, ranks: list[int]) -> list[int]:
    os.kill(case.rng.choice(ranks), signal.SIGSTOP)
    for _ in range(2):
        os.kill(launcher, signal.SIGINT)
        time.sleep(3)
    return [130]


def _one_stopped_and_one_killed(case: Case, launcher: int, ranks: list[int]) -> list[int]:
    case.rng.shuffle(ranks)
    os.kill(ranks[0], signal.SIGSTOP)
    os.kill(ranks[1], signal.SIGKILL)
    return [2]


def _launcher_killed(case: Case, launcher: int, ranks: list[int]) -> list[int]:
    os.kill(launcher, signal.SIGKILL)
    return [-signal.SIGKILL]


def _terminated(case: Case, launcher: int, ranks: list[int]) -> list[int]:
    os.kill(launcher, signal.SIGTERM)
    return [0, 130]


def _launcher_killed_beside_a_stopped_process(case: Case, launcher: int, ranks: list[int]) -> list[int]:
    os.kill(ranks[1], signal.SIGSTOP)
    os.kill(launcher, signal.SIGKILL)
    return [-signal.SIGKILL]


DISTURBANCES: tuple[Callable[[Case, int, list[int]], list[int]], ...] = (
    _stopped_for_a_while,
    _stopped_and_interrupted_twice,
    _one_stopped_and_one_killed,
    _launcher_killed,
    _terminated,
    _launcher_killed_beside_a_stopped_process,
)

PART = Part("ranks", run, seconds=40)
