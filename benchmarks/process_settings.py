"""Compare iterations of `tdmr1 train` with and without a setting that the command line makes for its process.

    python benchmarks/process_settings.py allocator --pairs 5    # tdmr1_cli/allocator.py: freed memory is kept
    python benchmarks/process_settings.py waiting --pairs 5      # tdmr1_core/distributed.py: how threads wait
    python benchmarks/process_settings.py waiting --busy 1       # while another process uses one core

The runs train the embedded model with the preset tiny, 6 iterations by default. Each run is a process of its own, and
both kinds take turns. The first iteration of a run does not count. Printed are, for each pair, the median seconds of an
iteration, their ratio with / without, the CPU seconds that the system used for the process, and its largest resident
size. Metrics of both runs must be equal: the settings change no number.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from children import without_times
from time_to_gain import metrics_of

from tdmr1_cli.allocator import USER_SETTINGS
from tdmr1_core.distributed import WAITING

WITHOUT = {
    "allocator": {"THP_MEM_ALLOC_ENABLE": "0", "GLIBC_TUNABLES": ""},
    "waiting": {"OMP_WAIT_POLICY": "PASSIVE"},
}
"""Environments in which tdmr1 makes no such setting. With the policy PASSIVE, threads sleep at once."""
USERS = {"allocator": (*USER_SETTINGS, "THP_MEM_ALLOC_ENABLE"), "waiting": tuple(WAITING)}
"""Variables with which a user's environment decides instead of tdmr1."""
BUSY = "while True: pass"
QUICK = ("evaluation.images=2", "guard.enabled=false")


@dataclass(frozen=True)
class Measured:
    """One run: median seconds of an iteration, CPU seconds of the system, largest resident size in MB, metrics."""

    seconds: float
    system: float
    resident: float
    metrics: list[dict[str, Any]]


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Run this number of processes that each use one core."""
    processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def run(folder: Path, environment: dict[str, str], options: argparse.Namespace) -> Measured:
    """Train once in a new process."""
    command = [sys.executable, "-m", "tdmr1_cli", "train", "--quiet", "--model", options.model, "--preset"]
    command += [options.preset, "--reward", options.reward, "--iterations", str(options.iterations)]
    command += ["--output", str(folder)]
    command += [part for setting in (*QUICK, *options.set) for part in ("--set", setting)]
    with folder.with_suffix(".log").open("w") as log:
        process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise SystemExit(f"wait status {status}: {Path(log.name).read_text()[-2000:]}")
    rows = metrics_of(folder)
    seconds = statistics.median(row["time/iteration"] for row in rows[1:])
    return Measured(seconds, usage.ru_stime, usage.ru_maxrss / 1024, [without_times(row) for row in rows])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("setting", choices=WITHOUT)
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--busy", type=int, default=0, help="processes that use one core each meanwhile (default: 0)")
    parser.add_argument("--iterations", type=int, default=6)
    parser.add_argument("--model", default="tiny-tdm")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--reward", default="object_count")
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    if decided := [name for name in USERS[options.setting] if name in os.environ]:
        parser.error(f"the environment has {', '.join(decided)}, so tdmr1 makes no such setting; unset it")
    ratios = []
    kinds: dict[str, dict[str, str]] = {"without": WITHOUT[options.setting], "with": {}}
    with tempfile.TemporaryDirectory() as place, busy(options.busy):
        for pair in range(options.pairs):
            order = list(kinds.items()) if pair % 2 else list(kinds.items())[::-1]
            found = {kind: run(Path(place, f"{pair}-{kind}"), extra, options) for kind, extra in order}
            given, without = found["with"], found["without"]
            if given.metrics != without.metrics:
                raise SystemExit("the metrics of the two runs differ")
            ratios.append(given.seconds / without.seconds)
            print(
                f"{without.seconds:.2f} s → {given.seconds:.2f} s ({ratios[-1]:.3f}), system {without.system:.1f} s "
                f"→ {given.system:.1f} s, resident {without.resident:.0f} MB → {given.resident:.0f} MB",
                flush=True,
            )
    print(f"with / without: median {statistics.median(ratios):.3f} ({min(ratios):.3f}–{max(ratios):.3f})")


if __name__ == "__main__":
    main()
