"""The runs whose curves docs/troubleshooting.md shows: one healthy run, and one for each fault.

    python benchmarks/troubleshooting_curves.py --output build/curves
    python docs/generate.py

Each run trains an embedded model with seed 0. The script skips finished runs and writes the curves of all runs to
docs/curves/measured.json, from which `docs/generate.py` draws them. `--only NAME` selects runs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tdmr1_core.runs.metrics_log import EVALUATIONS, GUARD, METRICS

DATA = Path(__file__).parent.parent / "docs" / "curves" / "measured.json"
DONE = "finished"
REWARD, DRIFT, SILENT = "reward/mean", "surrogate/drift", "zero_std_ratio"
COMMON = ("saving.samples_every=0", "saving.tensorboard=false", "threads=1")
TOO_HARD = [
    {"prompt": f"four {color} {shape}s", "include": [{"class": shape, "color": color, "count": 7}]}
    for color in ("red", "green", "blue", "yellow")
    for shape in ("circle", "square", "triangle")
]
"""Prompts whose metadata asks for seven objects. The model learned to draw at most four, and rarely draws more."""

Series = tuple[str, str, Mapping[str, str]]
"""A log file, a key in its lines, and what other keys of these lines must be."""


@dataclass(frozen=True)
class Run:
    """A run: the arguments of `tdmr1 train`, and its curves by their labels."""

    arguments: tuple[str, ...]
    curves: Mapping[str, Series]


def metric(name: str) -> Series:
    """A metric of each iteration."""
    return METRICS, name, {}


def settings(*texts: str) -> tuple[str, ...]:
    """Settings as arguments."""
    return tuple(part for text in texts for part in ("--set", text))


def counting(*texts: str, iterations: int = 20) -> tuple[str, ...]:
    """The arguments of a run that learns to count."""
    return ("--reward", "object_count", "--iterations", str(iterations), *settings(*texts))


RUNS: dict[str, Run] = {
    "healthy": Run(
        counting("evaluation.every=10", iterations=70),
        {
            REWARD: metric(REWARD),
            "held-out prompts": (EVALUATIONS, "object_count/mean", {"prompts": "count-held-out"}),
            DRIFT: metric(DRIFT),
        },
    ),
    "no_signal": Run(
        counting("rewards.0.options.score=exact", "prompts.train=too_hard.json", iterations=30),
        {REWARD: metric(REWARD), SILENT: metric(SILENT)},
    ),
    "signal_ends": Run(
        ("--model", "tiny-words-tdm", "--reward", "ocr_match", "--iterations", "45"),
        {REWARD: metric(REWARD), SILENT: metric(SILENT)},
    ),
    "rates_too_low": Run(
        counting("surrogate.learning_rate=2e-5", "generator.learning_rate=1e-5"),
        {REWARD: metric(REWARD), DRIFT: metric(DRIFT), "grad_norm/generator": metric("grad_norm/generator")},
    ),
    "rates_too_high": Run(
        counting("generator.learning_rate=5e-3"),
        {REWARD: metric(REWARD), "grad_norm/generator": metric("grad_norm/generator")},
    ),
    "penalty_too_strong": Run(
        counting("surrogate.reference_penalty=15"),
        {REWARD: metric(REWARD), DRIFT: metric(DRIFT)},
    ),
    "penalty_too_weak": Run(
        counting("surrogate.reference_penalty=0", "surrogate.drift_threshold=null"),
        {REWARD: metric(REWARD), DRIFT: metric(DRIFT)},
    ),
    "hacked": Run(
        (
            *("--reward", "jpeg_size", "--prompts", "count", "--iterations", "30"),
            *settings("evaluation.every=5", "evaluation.rewards=[{name: object_count, options: {score: exact}}]"),
        ),
        {
            REWARD: metric(REWARD),
            "held-out reward": (EVALUATIONS, "object_count/mean", {"prompts": "count"}),
            "diversity": (GUARD, "picture/diversity/mean", {}),
        },
    ),
}
"""The runs by the name of their figure."""


def train(name: str, folder: Path) -> None:
    """Train a run, unless it is finished."""
    if (folder / DONE).exists():
        return
    shutil.rmtree(folder, ignore_errors=True)  # left by an interrupted run of this script
    folder.parent.mkdir(parents=True, exist_ok=True)
    (folder.parent / "too_hard.json").write_text(json.dumps(TOO_HARD))
    command = [sys.executable, "-m", "tdmr1_cli", "train", "--quiet", "--seed", "0", "--output", str(folder)]
    command += [*settings(*COMMON), *RUNS[name].arguments]
    status = subprocess.call(command, cwd=folder.parent)
    if status not in (0, 1):  # 1: the run learned nothing
        raise SystemExit(f"exit code {status}: {' '.join(command)}")
    (folder / DONE).touch()
    print(f"trained: {name}", file=sys.stderr, flush=True)


def series(folder: Path, wanted: Series) -> list[tuple[int, float]]:
    """The points of a curve: iteration and value."""
    file, key, others = wanted
    rows = [json.loads(line) for line in (folder / file).read_text().splitlines()]
    return [(row["step"], row[key]) for row in rows if key in row and others.items() <= row.items()]


def main() -> None:
    """Train the runs and write their curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", choices=RUNS, nargs="+", default=list(RUNS))
    options = parser.parse_args()
    measured = json.loads(DATA.read_text()) if DATA.exists() else {}
    for name in options.only:
        folder = options.output.resolve() / name
        train(name, folder)
        curves = {label: series(folder, wanted) for label, wanted in RUNS[name].curves.items()}
        measured[name] = {
            label: [(step, float(f"{value:.4g}")) for step, value in points] for label, points in curves.items()
        }
    DATA.parent.mkdir(exist_ok=True)
    DATA.write_text(json.dumps({name: measured[name] for name in RUNS if name in measured}) + "\n")


if __name__ == "__main__":
    main()
