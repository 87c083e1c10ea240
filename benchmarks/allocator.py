"""Compare iterations of `tdmr1 train` with and without the settings of tdmr1_cli/allocator.py.

    python benchmarks/allocator.py --pairs 5         # the embedded model, preset tiny, 5 pairs of runs of 6 iterations

Each run is a process of its own, and both kinds take turns. The first iteration of a run does not count. Printed are,
for each pair, the median seconds of an iteration, their ratio kept / default, the CPU seconds that the system used for
the process, and its largest resident size. Metrics of both runs must be equal: the settings change no number.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from children import without_times
from time_to_gain import metrics_of

DEFAULT = {"THP_MEM_ALLOC_ENABLE": "0", "GLIBC_TUNABLES": ""}
"""An environment in which tdmr1 leaves the allocator as it is."""
KINDS: dict[str, dict[str, str]] = {"default": DEFAULT, "kept": {}}
QUICK = ("evaluation.images=2", "guard.enabled=false")


@dataclass(frozen=True)
class Measured:
    """One run: median seconds of an iteration, CPU seconds of the system, largest resident size in MB, metrics."""

    seconds: float
    system: float
    resident: float
    metrics: list[dict[str, Any]]


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
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--iterations", type=int, default=6)
    parser.add_argument("--model", default="tiny-tdm")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--reward", default="object_count")
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    ratios = []
    with tempfile.TemporaryDirectory() as place:
        for pair in range(options.pairs):
            order = list(KINDS.items()) if pair % 2 else list(KINDS.items())[::-1]
            found = {kind: run(Path(place, f"{pair}-{kind}"), extra, options) for kind, extra in order}
            kept, default = found["kept"], found["default"]
            if kept.metrics != default.metrics:
                raise SystemExit("the metrics of the two runs differ")
            ratios.append(kept.seconds / default.seconds)
            print(
                f"{default.seconds:.2f} s → {kept.seconds:.2f} s ({ratios[-1]:.3f}), system {default.system:.1f} s → "
                f"{kept.system:.1f} s, resident {default.resident:.0f} MB → {kept.resident:.0f} MB",
                flush=True,
            )
    print(f"kept / default: median {statistics.median(ratios):.3f} ({min(ratios):.3f}–{max(ratios):.3f})")


if __name__ == "__main__":
    main()
