"""Measure how time and memory grow with the images of an iteration, and the efficiency of two processes.

    python benchmarks/scaling.py --output build/scaling

On the embedded model, preset tiny:

- Cost: engines of 1, 2 and 4 times the groups, with the same micro-batch, run iterations in turn, in one process with
  one thread. Printed are the seconds per image, relative to the smallest engine: the median of the rounds.
- Memory: each size runs in a process of its own. Printed is its largest resident size.
- Two processes: the same iterations run with one process of one thread and with two of them, in turn. The efficiency is
  time with one / (2 x time with two), from the median of `time/iteration`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

GROUPS = 4
MICRO_BATCH = 24
FACTORS = (1, 2, 4)
FEW = ("evaluation.images=8", "evaluation.every=0", "saving.samples_every=0", "saving.tensorboard=false")
QUIET = ("guard.enabled=false", "threads=1", *FEW)


def cost(rounds: int) -> dict[str, float]:
    """Seconds per image of each factor, relative to the smallest, as the median of `rounds` rounds."""
    import torch

    from tdmr1_core.config_loading import parse_assignments, read_preset, resolve
    from tdmr1_core.engine import Engine

    torch.set_num_threads(1)
    tree = {"rewards": [{"name": "object_count"}], "model": {"name": "tiny-tdm"}}
    engines = {}
    for factor in FACTORS:
        sizes = parse_assignments([f"batch.groups={GROUPS * factor}", f"batch.micro_batch={MICRO_BATCH}"])
        engines[factor] = Engine.from_config(resolve([read_preset("tiny"), tree, sizes]))
        engines[factor].iteration()
    ratios: dict[int, list[float]] = {factor: [] for factor in FACTORS}
    for _ in range(rounds):
        seconds = {}
        for factor, engine in engines.items():
            started = time.perf_counter()
            engine.iteration()
            seconds[factor] = (time.perf_counter() - started) / factor
        for factor in FACTORS:
            ratios[factor].append(seconds[factor] / seconds[FACTORS[0]])
    return {f"{factor} x {GROUPS} groups": statistics.median(found) for factor, found in ratios.items()}


def train(folder: Path, groups: int, iterations: int, processes: int = 1) -> tuple[float, float]:
    """Train in new processes. Returns the median seconds of an iteration, and the largest resident megabytes."""
    sets = (f"batch.groups={groups}", f"batch.micro_batch={MICRO_BATCH}", *QUIET)
    command = ["train", "--quiet", "--iterations", str(iterations), "--output", str(folder)]
    command += ["--processes", str(processes)] if processes > 1 else []
    command += [part for setting in sets for part in ("--set", setting)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (folder.parent / f"{folder.name}.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tdmr1_cli", *command], env=environment, stdout=log, stderr=log
        )
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"the training failed; see {log.name}")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(row["time/iteration"] for row in rows[1:]), usage.ru_maxrss / 1024


def main() -> None:
    """Measure all three, and print a JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=4)
    options = parser.parse_args()
    options.output.mkdir(parents=True)
    memory = {
        f"{factor} x {GROUPS} groups": train(options.output / f"memory-{factor}", GROUPS * factor, 2)[1]
        for factor in FACTORS
    }
    pairs = []
    for number in range(options.rounds):
        one, two = (
            train(options.output / f"processes-{count}-{number}", 2 * GROUPS, options.iterations, count)[0]
            for count in (1, 2)
        )
        pairs.append({"one": one, "two": two, "efficiency": one / (2 * two)})
    document = {
        "seconds_per_image_relative": cost(options.rounds),
        "resident_megabytes": memory,
        "processes": pairs,
        "efficiency": statistics.median(pair["efficiency"] for pair in pairs),
    }
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
