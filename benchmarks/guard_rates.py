"""How often the guard detects reward hacking, and its rate of false alarms, on the embedded world.

    python benchmarks/guard_rates.py train  --output build/guard --seeds 100 101            # to choose a threshold
    python benchmarks/guard_rates.py report --output build/guard --seeds 100 101
    python benchmarks/guard_rates.py train  --output build/guard --seeds 0 1 2 3 4          # to measure it
    python benchmarks/guard_rates.py report --output build/guard --seeds 0 1 2 3 4 --threshold T

`jpeg_size` (small or large files) can be hacked: plain or noisy images have the best scores, whatever the prompt.
`object_count` measures what the images should show. Every run evaluates several times and writes `guard.jsonl`.

`report` reads these files, so a threshold can be chosen without new training. For every run it prints the iteration of
the first alarm and the largest drift while the reward increased; for every condition, the number of runs with an alarm.
The midpoint between the drifts of hacked and other runs is a threshold that should then be measured on other seeds.
`train` skips finished runs and resumes interrupted ones.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tdmr1_core.config import GuardConfig
from tdmr1_core.runs.evaluation.guard import Drift, GuardReading, drifts, find_alarms, is_too_far
from tdmr1_core.runs.metrics_log import GUARD

CONDITIONS = {
    "small files": ("jpeg_size", ["--set", "rewards.0.options.prefer=small"]),
    "large files": ("jpeg_size", ["--set", "rewards.0.options.prefer=large"]),
    "count": ("object_count", []),
}
HACKABLE = ("small files", "large files")
EVALUATIONS = 5
IMAGES = 288
PRESET = "tiny"


def run_folder(root: Path, condition: str, seed: int) -> Path:
    """The folder of a run."""
    return root / f"{condition.replace(' ', '-')}-{seed}"


def train(root: Path, seeds: Sequence[int], conditions: Sequence[str], iterations: int, images: int) -> None:
    """Make all runs that are not finished, one after the other."""
    for seed in seeds:
        for condition in conditions:
            folder, (reward, settings) = run_folder(root, condition, seed), CONDITIONS[condition]
            arguments = ["--reward", reward, "--preset", PRESET, *settings, "--seed", str(seed)]
            arguments += ["--iterations", str(iterations), "--output", str(folder), "--quiet"]
            arguments += ["--set", f"evaluation.images={images}", "--set", "saving.samples_every=0"]
            arguments += ["--set", f"evaluation.every={max(1, iterations // EVALUATIONS)}"]
            if (folder / "checkpoints" / "latest").exists():
                arguments = ["--resume", str(folder), "--quiet"]
            if not (folder / "before_after.png").exists():
                subprocess.run([sys.executable, "-m", "tdmr1_cli", "train", *arguments], check=True)
                print(f"trained {folder}", flush=True)


def report(root: Path, seeds: Sequence[int], conditions: Sequence[str], threshold: float) -> None:
    """Print a line for every run, the rates, and the midpoint between hacked runs and others."""
    print("| condition | seed | evaluations | first alarm | largest drift while the reward increased |")
    print("|---|---|---|---|---|")
    alarmed: dict[str, list[bool]] = {}
    sizes: dict[bool, list[float]] = {True: [], False: []}
    for condition in conditions:
        for seed in seeds:
            path = run_folder(root, condition, seed) / GUARD
            if not path.exists():
                continue
            reward, _ = CONDITIONS[condition]
            readings = [GuardReading.of(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
            first = _first_alarm(readings, reward, threshold)
            alarmed.setdefault(condition, []).append(first is not None)
            largest = _largest_drift(readings, reward)
            sizes[condition in HACKABLE].append(abs(largest.size) if largest else 0.0)
            print(f"| {condition} | {seed} | {len(readings)} | {first or 'none'} | {largest or 'none'} |")
    print()
    for condition, alarms in alarmed.items():
        kind = "detected" if condition in HACKABLE else "false alarms"
        print(f"{condition}: {kind} in {sum(alarms)} of {len(alarms)} runs with threshold {threshold:g}")
    if all(sizes.values()):
        least, most = min(sizes[True]), max(sizes[False])
        print(f"drift of hacked runs >= {least:.2f}, of others <= {most:.2f}: midpoint {(least + most) / 2:.2f}")


def _first_alarm(readings: Sequence[GuardReading], reward: str, threshold: float) -> int | None:
    """The iteration of the first reading with an alarm."""
    with_alarm = (reading.step for reading in readings[1:] if find_alarms(readings[0], reading, threshold, {reward: 1}))
    return next(with_alarm, None)


def _largest_drift(readings: Sequence[GuardReading], reward: str) -> Drift | None:
    """The largest drift that can cause an alarm, over all evaluations in which the reward had increased."""
    candidates = (
        drift
        for reading in readings[1:]
        if find_alarms(readings[0], reading, 0.0, {reward: 1})
        for drift in drifts(readings[0], reading)
        if is_too_far(drift, 0.0)
    )
    return max(candidates, key=lambda drift: abs(drift.size), default=None)


def main() -> None:
    """Run one step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["train", "report"])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--conditions", nargs="+", choices=list(CONDITIONS), default=list(CONDITIONS))
    parser.add_argument("--iterations", type=int, default=70, help="iterations of a run")
    parser.add_argument("--images", type=int, default=IMAGES, help="images per prompt set in an evaluation")
    parser.add_argument("--threshold", type=float, default=GuardConfig().threshold, help="in standard deviations")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    if options.step == "train":
        train(options.output, options.seeds, options.conditions, options.iterations, options.images)
    else:
        report(options.output, options.seeds, options.conditions, options.threshold)


if __name__ == "__main__":
    main()
