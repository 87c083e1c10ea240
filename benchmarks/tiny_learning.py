"""The headline and its controls on the embedded world, from nothing but the command line and held-out noises.

    python benchmarks/tiny_learning.py train    --output build/learning --seeds 0 1 2 --jobs 2
    python benchmarks/tiny_learning.py teacher  --output build/learning
    python benchmarks/tiny_learning.py evaluate --output build/learning
    python benchmarks/tiny_learning.py report   --output build/learning
    python benchmarks/tiny_learning.py curves   --output build/learning

`train` makes three runs a seed, each by `tdmr1 train`: as it is, with advantages permuted inside their groups, and with
the reward term off. `evaluate` draws 24 pictures of each of the 48 captions (1,152 pairs of caption and noise; a fourth
of the captions never trained on) from the student and from every run's *final* averaged generator, and counts; what
was not rewarded is judged by `judge.py`, on these pictures and on two of each of the 432 captions of pairs. `report`
prints the tables, and `curves` draws the rewards during training (matplotlib: the extra `benchmarks`). Every step
continues where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from judge import judge
from learning_report import (
    MEASURES,
    OF_PAIRS,
    PER_CAPTION,
    PER_PAIR,
    STUDENT,
    curves,
    judge_unrewarded,
    run_folder,
    tables,
)

SETTINGS = {
    "real": [],
    "permuted": ["--set", "advantages.permute=true"],
    "reward off": ["--set", "generator.reward_scale=0"],
}
EVALUATION_SEED = 77_000_077
PAIR_SETS = ("pairs", "pairs-held-out")
GUIDANCES = (3.0, 2.0, 4.0)


def train(root: Path, seeds: list[int], conditions: list[str], jobs: int, extra: list[str]) -> None:
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
            command += ["--seed", str(seed), "--output", str(folder), *SETTINGS[condition], *extra]
        with (root / f"{folder.name}.log").open("a") as log:
            subprocess.run(command, env=environment, stderr=log, stdout=log, check=True)
        print(f"done: {folder}", flush=True)

    root.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, [(seed, condition) for seed in seeds for condition in conditions]))


def count_exactly(pictures) -> np.ndarray:  # noqa: ANN001 - tdmr1_core.runs.evaluate.Pictures
    """1.0 where the picture holds exactly the asked number of objects of the asked colour."""
    from tdmr1_rewards.api import RewardBatch, RewardContext
    from tdmr1_rewards.builtin.object_count import ObjectCount, ObjectCountOptions

    batch = RewardBatch(
        images=pictures.images,
        prompts=[prompt.text for prompt in pictures.prompts],
        metadata=[prompt.metadata for prompt in pictures.prompts],
        group_ids=pictures.group_ids,
        image_ids=list(range(len(pictures.images))),
        context=RewardContext(None, 0, 0),
    )
    return np.array(ObjectCount(ObjectCountOptions(score="exact"))(batch).scores, dtype=float)


def measure(
    engine,  # noqa: ANN001 - tdmr1_core.Engine
    role: str,
    *,
    pairs: bool = True,
    **options: float,
) -> dict[str, list[float]]:
    """Everything about one role's pictures of all captions, one number an image, a group or a pair."""
    from tdmr1_core.runs.evaluate import draw
    from tdmr1_core.stages.prompts import load_prompts

    pictures = draw(engine, role, load_prompts("count-all", "tiny"), PER_CAPTION, EVALUATION_SEED, **options)
    measures = {
        "exact": count_exactly(pictures).tolist(),
        **judge_unrewarded(
            pictures.images, [prompt.metadata for prompt in pictures.prompts], np.array(pictures.group_ids)
        ),
    }
    if pairs:
        prompts = [prompt for name in PAIR_SETS for prompt in load_prompts(name, "tiny")]
        drawn = draw(engine, role, prompts, PER_PAIR, EVALUATION_SEED, **options)
        judged = judge(drawn.images, [prompt.metadata for prompt in drawn.prompts])
        measures |= {name: judged[name].tolist() for name in OF_PAIRS}
    return measures


def evaluate(root: Path) -> None:
    """Measure the final generator of every finished run that has no measures yet, and once the student."""
    from tdmr1_core.runs.run import load_trained

    for folder in sorted(path.parent for path in root.glob("*/before_after.png")):
        target, student = folder / MEASURES, root / STUDENT
        if target.exists():
            continue
        engine = load_trained(folder)
        target.write_text(json.dumps(measure(engine, "generator_ema")))
        print(f"measured: {folder}", flush=True)
        if not student.exists():
            engine.roles.load("generator_ema", engine.start, "student")
            student.write_text(json.dumps(measure(engine, "generator_ema")))


def teacher(root: Path) -> None:
    """Measure the 28-step teacher on the same count captions and noises at several guidance scales."""
    from tdmr1_core.configure import read_preset, resolve
    from tdmr1_core.engine import Engine

    root.mkdir(parents=True, exist_ok=True)
    engine = Engine.from_config(resolve([read_preset("tiny"), {"rewards": [{"name": "object_count"}]}]))
    for guidance in GUIDANCES:
        target = root / f"teacher-{guidance}.json"
        if not target.exists():
            target.write_text(json.dumps(measure(engine, "teacher", pairs=False, guidance_scale=guidance)))
            print(f"teacher at guidance {guidance}: {np.mean(json.loads(target.read_text())['exact']):.3f}", flush=True)


def main() -> None:
    """Choose the step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["train", "teacher", "evaluate", "report", "curves"])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--conditions", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--jobs", type=int, default=2)
    options, extra = parser.parse_known_args()
    if options.step == "train":
        train(options.output, options.seeds, options.conditions, options.jobs, extra)
    else:
        {"teacher": teacher, "evaluate": evaluate, "report": tables, "curves": curves}[options.step](options.output)


if __name__ == "__main__":
    main()
