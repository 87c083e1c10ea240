"""Seconds and sampled images until a training has gained 20 points, for several settings or versions of the code.

    python benchmarks/time_to_gain.py --output build/gain --subject count --seeds 0 1 2 \\
        --variant uniform --variant teaching batch.prompts=teaching
    python benchmarks/time_to_gain.py --output build/old-new --subject count --seeds 0 1 2 \\
        --variant old@e294c5c --variant new

`--variant NAME[@COMMIT] [SETTING …]` names a run: with a commit, a temporary git worktree of that commit trains it
(PYTHONPATH selects the tree), otherwise this tree. The others are compared with the first variant.

The runs follow one another: for each seed all variants, in the reverse order for every other seed. A run saves a
checkpoint every `--every` iterations. After all runs, this tree samples from each checkpoint the raw and the averaged
generator with fixed noise and measures the first sheet of `subjects.py`. After both have the gain, it measures only the
last checkpoint. Seconds are the sum of `time/iteration`: they contain neither evaluations nor checkpoints. The gain is
measured against the student, and the point at which it is reached is interpolated between two checkpoints.

The script skips runs and measurements that are finished. Do not edit the tree meanwhile. Run it on idle cores.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from same_bits import REPOSITORY, Tree, git, worktree
from subjects import SUBJECTS, Sheet, Subject
from tiny_learning import measure

ROLES = {"generator": "raw", "generator_ema": "averaged"}
METRICS = {"count": "exact", "composition": "geneval", "words": "exact"}
"""The measured headline of each subject."""
DONE = "finished"
COMMON = ("evaluation.images=2", "guard.enabled=false", "saving.samples_every=0", "saving.tensorboard=false")
MOST_CHECKPOINTS = 10**6


@dataclass(frozen=True)
class Variant:
    """A version of the code (None for this tree) and settings."""

    name: str
    commit: str | None
    settings: tuple[str, ...]

    @classmethod
    def parse(cls, words: Sequence[str]) -> Variant:
        """The variant of `NAME[@COMMIT] [SETTING …]`."""
        name, _, commit = words[0].partition("@")
        return cls(name, commit or None, tuple(words[1:]))


@dataclass(frozen=True)
class Point:
    """A checkpoint: completed iterations, seconds and images until then, and the metric of both generators (0 to 1)."""

    iteration: int
    seconds: float
    images: int
    generator: float
    generator_ema: float


@dataclass(frozen=True)
class Reached:
    """Where a gain is reached: iterations, seconds and images, interpolated linearly."""

    iterations: float
    seconds: float
    images: float


def when_gained(curve: Sequence[Point], role: str, gain: float) -> Reached | None:
    """Where a generator is first `gain` above the first point; None if it never is."""
    goal = getattr(curve[0], role) + gain
    for before, after in pairwise(curve):
        low, high = getattr(before, role), getattr(after, role)
        if high >= goal:
            part = (goal - low) / (high - low)
            pairs = ((getattr(before, each), getattr(after, each)) for each in ("iteration", "seconds", "images"))
            return Reached(*(start + part * (end - start) for start, end in pairs))
    return None


def train(folder: Path, code: Path, variant: Variant, subject: Subject, seed: int, options: argparse.Namespace) -> None:
    """Train a variant with a seed, unless it is finished."""
    if (folder / DONE).exists():
        return
    shutil.rmtree(folder, ignore_errors=True)  # left by an interrupted run of this script
    settings = (*COMMON, f"threads={options.threads}", f"saving.checkpoint_every={options.every}")
    settings = (*settings, f"saving.keep={MOST_CHECKPOINTS}", *variant.settings)
    command = [sys.executable, "-m", "tdmr1_cli", "train", "--quiet", "--model", subject.model]
    command += ["--reward", subject.reward, "--seed", str(seed), "--output", str(folder)]
    command += [] if options.iterations is None else ["--iterations", str(options.iterations)]
    command += [part for setting in settings for part in ("--set", setting)]
    environment = {**os.environ, "PYTHONPATH": str(code), "OMP_NUM_THREADS": str(options.threads)}
    with folder.with_name(f"{folder.name}.log").open("w") as log:
        status = subprocess.call(command, env=environment, cwd=code, stdout=log, stderr=log)  # -m prefers this folder
    if status != 0:
        raise SystemExit(f"exit code {status}: see {log.name}")
    (folder / DONE).touch()
    print(f"trained: {folder.name}", file=sys.stderr, flush=True)


def curve_of(folder: Path, sheet: Sheet, metric: str, gain: float) -> list[Point]:
    """The points of a finished run until both generators have the gain, and the last one; the first is the student."""
    stored = folder / f"curve-{gain:g}-{len(sheet.clusters)}.json"
    if stored.exists():
        return [Point(**row) for row in json.loads(stored.read_text())]
    from tdmr1_core.runs.checkpoints.checkpoint import checkpoint_folders, iteration_of, load_checkpoint
    from tdmr1_core.runs.load_run import load_trained

    engine, rows = load_trained(folder), metrics_of(folder)
    batch = engine.config.batch
    engine.roles.load("generator", engine.start, "student")
    student = float(np.mean(measure(engine, "generator", [sheet])[metric]))
    points = [Point(0, 0.0, 0, student, student)]
    checkpoints = checkpoint_folders(folder / "checkpoints")
    for checkpoint in checkpoints:
        if checkpoint != checkpoints[-1] and all(when_gained(points, role, gain) for role in ROLES):
            continue
        load_checkpoint(engine, checkpoint, moments=False, roles=tuple(ROLES))
        done = iteration_of(checkpoint)
        seconds = sum(row["time/iteration"] for row in rows[:done])
        values = [float(np.mean(measure(engine, role, [sheet])[metric])) for role in ROLES]
        points.append(Point(done, seconds, done * batch.groups * batch.group_size, *values))
    stored.write_text(json.dumps([asdict(point) for point in points], indent=1) + "\n")
    print(f"measured: {folder.name}", file=sys.stderr, flush=True)
    return points


def metrics_of(folder: Path) -> list[dict[str, float]]:
    """The metrics of each iteration."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def table(curves: dict[str, dict[int, list[Point]]], signal: dict[str, list[float]], gain: float) -> list[str]:
    """The lines of the Markdown tables: each run, then the means over the seeds compared with the first variant.

    `curves` has the points by variant and seed, `signal` the fraction of groups with signal of each run by variant.
    """
    goal = f"+{100 * gain:g} points"
    lines = [f"| variant | generator | seed | student → end, % | iterations to {goal} | images | seconds |"]
    lines.append("|---" * 7 + "|")
    found = {
        (name, role, seed): when_gained(curve, role, gain)
        for name, runs in curves.items()
        for role in ROLES
        for seed, curve in runs.items()
    }
    for (name, role, seed), reached in found.items():
        first, last = (100 * getattr(curves[name][seed][place], role) for place in (0, -1))
        cells = "not reached | | |"
        if reached is not None:
            cells = f"{reached.iterations:.1f} | {reached.images:.0f} | {reached.seconds:.1f} |"
        lines.append(f"| {name} | {ROLES[role]} | {seed} | {first:.1f} → {last:.1f} | {cells}")
    lines += [
        "",
        f"| variant | groups with signal, % | seconds an iteration | {goal}: generator | n | images, × | ×, s |",
    ]
    lines.append("|---" * 7 + "|")
    baseline = next(iter(curves))
    for name, runs in curves.items():
        each = np.mean([curve[-1].seconds / curve[-1].iteration for curve in runs.values()])
        for role, label in ROLES.items():
            pairs = [(found[baseline, role, seed], found[name, role, seed]) for seed in runs]
            both = [(one, two) for one, two in pairs if one is not None and two is not None]
            cells = f"{len(both)} of {len(pairs)} |"
            for unit in ("images", "seconds"):
                sums = [sum(getattr(pair[i], unit) for pair in both) for i in (0, 1)]
                cells += f" {sums[1] / sums[0]:.2f} |" if both else " |"
            lines.append(f"| {name} | {100 * np.mean(signal[name]):.1f} | {each:.2f} | {label} | {cells}")
    return lines


def main() -> None:
    """Train and measure all variants, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--subject", choices=SUBJECTS, default="count")
    parser.add_argument("--variant", nargs="+", action="append", required=True, metavar="NAME[@COMMIT]")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--iterations", type=int, help="iterations of each run (default: those of the preset)")
    parser.add_argument("--every", type=int, default=5, help="iterations between two measurements (default: 5)")
    parser.add_argument("--each", type=int, help="images of each prompt (default: those of the subject)")
    parser.add_argument("--threads", type=int, default=2, help="threads of a run (default: 2)")
    parser.add_argument("--gain", type=float, default=0.2, help="the gain, as a fraction (default: 0.2)")
    options = parser.parse_args()
    variants, subject = [Variant.parse(words) for words in options.variant], SUBJECTS[options.subject]
    sheet = replace(subject.sheets[0], each=options.each or subject.sheets[0].each)
    options.output.mkdir(parents=True, exist_ok=True)
    root = options.output.resolve()
    folders = {(each.name, seed): root / f"{each.name}-{seed}" for each in variants for seed in options.seeds}
    with ExitStack() as stack:
        trees = {None: REPOSITORY}
        for commit in {each.commit for each in variants} - {None}:
            temporary = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="time_to_gain-"))).resolve()
            full = git("rev-parse", "--verify", f"{commit}^{{commit}}")
            trees[commit] = stack.enter_context(worktree(full, temporary / "tree"))
        for code in trees.values():
            Tree("variant", code, root).check()
        for number, seed in enumerate(options.seeds):
            for each in variants[:: -1 if number % 2 else 1]:
                train(folders[each.name, seed], trees[each.commit], each, subject, seed, options)
    curves: dict[str, dict[int, list[Point]]] = {each.name: {} for each in variants}
    signal: dict[str, list[float]] = {each.name: [] for each in variants}
    for (name, seed), folder in folders.items():
        curves[name][seed] = curve_of(folder, sheet, METRICS[options.subject], options.gain)
        signal[name].append(1 - float(np.mean([row["zero_std_ratio"] for row in metrics_of(folder)])))
    print("\n".join(table(curves, signal, options.gain)))


if __name__ == "__main__":
    main()
