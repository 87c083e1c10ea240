"""The headline and its controls on the embedded worlds, from nothing but the command line and held-out noises.

    python benchmarks/tiny_learning.py train    --output build/learning --seeds 0 1 2 --jobs 2
    python benchmarks/tiny_learning.py teacher  --output build/learning
    python benchmarks/tiny_learning.py evaluate --output build/learning
    python benchmarks/tiny_learning.py report   --output build/learning
    python benchmarks/tiny_learning.py curves   --output build/learning

`--subject` says what is taught (`subjects.py`), the same at every step of a folder: to count (the default), to compose
pairs (`composition`), or to spell (`words`). `train` makes three runs a seed, each by `tdmr1 train`: as it is, with
advantages permuted inside their groups, and with the reward term off; further arguments are handed on to it. `evaluate`
draws from the student and from every run's *final* averaged generator: 24 pictures of each of the 48 captions of a
number and two of each of the 432 captions of pairs, or three of each of the 512 words; a fourth of the captions was
never trained on. What was not rewarded is judged by `judge.py` and `word_judge.py`. `report` prints the tables, and
`curves` draws the rewards during training (matplotlib: the extra `benchmarks`). Every step continues where it stopped.
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
    """Run `tdmr1 train` for every seed and condition, `jobs` at a time with one thread each."""
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
    """Everything about one role's pictures of the sheets, one number an image or a group."""
    measures: Measures = {}
    for sheet in sheets:
        measures |= sheet.measure(sample_images(engine, role, sheet.prompts, sheet.each, EVALUATION_SEED, **options))
    return measures


def evaluate(root: Path, subject: Subject) -> None:
    """Measure the final generator of every finished run that has no measures yet, and once the student."""
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
    """Measure the 28-step teacher on the same captions and noises at several guidance scales."""
    from tdmr1_cli.settings import Flags, resolve_settings
    from tdmr1_core.engine import Engine
    from tdmr1_core.plugins import discover

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
    """Choose the step."""
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
