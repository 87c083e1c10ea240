"""Train the embedded models with rewards and with controls, and measure them with held-out noises.

    python benchmarks/tiny_learning.py train    --output build/learning --seeds 0 1 2 --jobs 2
    python benchmarks/tiny_learning.py teacher  --output build/learning
    python benchmarks/tiny_learning.py evaluate --output build/learning
    python benchmarks/tiny_learning.py report   --output build/learning
    python benchmarks/tiny_learning.py curves   --output build/learning

`--subject` selects the task (`subjects.py`): `count` (default), `composition` of pairs, or `words` (spelling). Use the
same task for all steps of one folder.

- `train` starts three runs of `tdmr1 train` per seed: with the reward, with advantages permuted within groups, and
  without the reward term. Unknown arguments are passed to `tdmr1 train`.
- `teacher` measures the multi-step teacher at several guidance scales.
- `evaluate` samples from the student and from the *final* averaged generator of every run: 24 images of each of the 48
  count captions and two of each of the 432 pair captions (`count`), or three of each of the 512 words (`words`).
  About a quarter of the captions is held out. Unrewarded metrics come from `image_metrics.py` and `word_metrics.py`.
- `report` prints the tables. `curves` plots the rewards during training (matplotlib: the extra `benchmarks`).

Each step skips what is already finished, and `train` resumes interrupted runs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from learning_report import MEASURES, STUDENT, curves, run_folder, tables
from subjects import SUBJECTS, Measures, Sheet, Subject

from tdmr1_core.runs.evaluation.evaluate import sample_images

SETTINGS = {
    "real": [],
    "permuted": ["--set", "advantages.permute=true"],
    "reward off": ["--set", "generator.reward_scale=0"],
}
EVALUATION_SEED = 77_000_077


def train(root: Path, subject: Subject, seeds: list[int], conditions: list[str], jobs: int, extra: list[str]) -> None:
    """Run `tdmr1 train` for every seed and condition: `jobs` runs at a time, each with one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}

    def one(job: tuple[int, str]) -> None:
        seed, condition = job
        folder = run_folder(root, condition, seed)
        if (folder / "before_after.png").exists():
            return
        command = [sys.executable, "-m", "tdmr1_cli", "train"]
        if (folder / "checkpoints" / "latest").exists():
            command += ["--resume", str(folder)]
        else:
            command += ["--model", subject.model, "--reward", subject.reward, "--seed", str(seed)]
            command += ["--output", str(folder), *SETTINGS[condition], *extra]
        with (root / f"{folder.name}.log").open("a") as log:
            subprocess.run(command, env=environment, stderr=log, stdout=log, check=True)
        print(f"done: {folder}", flush=True)

    root.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, [(seed, condition) for seed in seeds for condition in conditions]))


def measure(engine, role: str, sheets: Sequence[Sheet], **options: float) -> Measures:  # noqa: ANN001 - Engine
    """All metrics of the images that a role samples: one value per image or group."""
    measures: Measures = {}
    for sheet in sheets:
        measures |= sheet.measure(sample_images(engine, role, sheet.prompts, sheet.each, EVALUATION_SEED, **options))
    return measures


def evaluate(root: Path, subject: Subject) -> None:
    """Measure the student, and the final generator of every finished run that was not measured yet."""
    from tdmr1_core.runs.load_run import load_trained

    for folder in sorted(path.parent for path in root.glob("*/before_after.png")):
        target, student = folder / MEASURES, root / STUDENT
        if target.exists():
            continue
        engine = load_trained(folder)
        target.write_text(json.dumps(measure(engine, "generator_ema", subject.sheets)))
        print(f"measured: {folder}", flush=True)
        if not student.exists():
            engine.roles.load("generator_ema", engine.start, "student")
            student.write_text(json.dumps(measure(engine, "generator_ema", subject.sheets)))


def teacher(root: Path, subject: Subject) -> None:
    """Measure the teacher with 28 steps, the same captions and noises, and several guidance scales."""
    from tdmr1_core.engine import Engine
    from tdmr1_core.plugins import discover
    from tdmr1_core.preflight.layers import Flags, resolve_settings

    root.mkdir(parents=True, exist_ok=True)
    flags = Flags(model=subject.model, rewards=[subject.reward])
    engine = Engine.from_config(resolve_settings(flags, "train", discover()).config)
    headline = next(iter(subject.headlines))
    for guidance in subject.guidances:
        target = root / f"teacher-{guidance}.json"
        if not target.exists():
            measures = measure(engine, "teacher", subject.sheets[:1], guidance_scale=guidance)
            target.write_text(json.dumps(measures))
            print(f"teacher at guidance {guidance}: {np.mean(measures[headline]):.3f}", flush=True)


def main() -> None:
    """Run one step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["train", "teacher", "evaluate", "report", "curves"])
    parser.add_argument("--subject", choices=SUBJECTS, default="count")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--conditions", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--jobs", type=int, default=2)
    options, extra = parser.parse_known_args()
    subject = SUBJECTS[options.subject]
    if options.step == "train":
        train(options.output, subject, options.seeds, options.conditions, options.jobs, extra)
    else:
        steps = {"teacher": teacher, "evaluate": evaluate, "report": tables, "curves": curves}
        steps[options.step](options.output, subject)


if __name__ == "__main__":
    main()
