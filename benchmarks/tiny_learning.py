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
from intervals import Gain, across_seeds, paired_gain
from judge import analyse, diversity, judge

CONDITIONS = {
    "real": [],
    "permuted": ["--set", "advantages.permute=true"],
    "reward off": ["--set", "generator.reward_scale=0"],
}
PER_CAPTION, EVALUATION_SEED = 24, 77_000_077
PAIR_SETS, PER_PAIR = ("pairs", "pairs-held-out"), 2
GUIDANCES = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0)
UNREWARDED = ("shape_right", "colour_right", "size", "size_error", "position_x", "position_y", "crispness")
UNREWARDED += ("background_noise",)
OF_A_GROUP = ("pixel_distance", "position_spread", "layout_distance")
OF_PAIRS = ("binding_right", "relation_right")
"""Measured on captions of another kind, which these runs never draw."""


def run_folder(root: Path, condition: str, seed: int) -> Path:
    """Where a run of a condition and seed lies."""
    return root / f"{condition.replace(' ', '-')}-{seed}"


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
            command += ["--seed", str(seed), "--output", str(folder), *CONDITIONS[condition], *extra]
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


def measure(engine, role: str, **options: float) -> dict[str, list[float]]:  # noqa: ANN001 - tdmr1_core.Engine
    """Everything about one role's pictures of all captions, one number an image."""
    from tdmr1_core.runs.evaluate import draw
    from tdmr1_core.stages.prompts import load_prompts

    pictures = draw(engine, role, load_prompts("count-all", "tiny"), PER_CAPTION, EVALUATION_SEED, **options)
    analyses = analyse(pictures.images)
    judged = judge(pictures.images, [prompt.metadata for prompt in pictures.prompts], analyses)
    judged |= diversity(pictures.images, np.array(pictures.group_ids), analyses)
    chosen = {name: judged[name].tolist() for name in (*UNREWARDED, *OF_A_GROUP, "count_right")}
    pairs = [prompt for name in PAIR_SETS for prompt in load_prompts(name, "tiny")]
    drawn = draw(engine, role, pairs, PER_PAIR, EVALUATION_SEED, **options)
    judged = judge(drawn.images, [prompt.metadata for prompt in drawn.prompts])
    return {"exact": count_exactly(pictures).tolist(), **chosen, **{name: judged[name].tolist() for name in OF_PAIRS}}


def evaluate(root: Path) -> None:
    """Measure the student and the final generator of every finished run that has no measures yet."""
    from tdmr1_core.runs.run import load_trained

    for folder in sorted(path.parent for path in root.glob("*/before_after.png")):
        target = folder / "measures.json"
        if target.exists():
            continue
        engine = load_trained(folder)
        trained = measure(engine, "generator_ema")
        engine.roles.load("generator_ema", engine.start, "student")
        target.write_text(json.dumps({"student": measure(engine, "generator_ema"), "trained": trained}))
        print(f"measured: {folder}", flush=True)


def teacher(root: Path) -> None:
    """Measure the 28-step teacher on the same captions and noises at several guidance scales."""
    from tdmr1_core.configure import read_preset, resolve
    from tdmr1_core.engine import Engine

    root.mkdir(parents=True, exist_ok=True)
    engine = Engine.from_config(resolve([read_preset("tiny"), {"rewards": [{"name": "object_count"}]}]))
    for guidance in GUIDANCES:
        target = root / f"teacher-{guidance}.json"
        if not target.exists():
            target.write_text(json.dumps(measure(engine, "teacher", guidance_scale=guidance)))
            print(f"teacher at guidance {guidance}: {np.mean(json.loads(target.read_text())['exact']):.3f}", flush=True)


def report(root: Path) -> None:
    """Print the tables as Markdown."""
    from tdmr1_core.tiny.world import count_captions

    captions = count_captions()
    clusters = np.repeat(np.arange(len(captions)), PER_CAPTION)
    held_out = np.repeat([caption.held_out for caption in captions], PER_CAPTION)
    print(f"n = {len(clusters)} pairs of caption and noise a run; {held_out.sum()} of captions never trained on\n")
    teachers = {path.stem: json.loads(path.read_text()) for path in sorted(root.glob("teacher-*.json"))}
    for name, values in teachers.items():
        exact = np.array(values["exact"])
        print(
            f"- {name}: exact {100 * exact.mean():.1f} % (standard error {100 * exact.std() / len(exact) ** 0.5:.1f})"
        )
    print("\n| condition | seed | captions | before | after | gain, 95 % interval |\n|---|---|---|---|---|---|")
    for condition in CONDITIONS:
        gains: dict[str, list[Gain]] = {"all": [], "never trained on": []}
        for path in sorted(root.glob(f"{condition.replace(' ', '-')}-*/measures.json")):
            measures = json.loads(path.read_text())
            seed = path.parent.name.rpartition("-")[2]
            for name, chosen in (("all", np.ones_like(held_out)), ("never trained on", held_out)):
                before, after = (np.array(measures[who]["exact"])[chosen] for who in ("student", "trained"))
                gain = paired_gain(before, after, clusters[chosen], seed=0)
                gains[name].append(gain)
                print(
                    f"| {condition} | {seed} | {name} | {100 * gain.before:.1f} | {100 * gain.after:.1f} "
                    f"| {100 * gain.gain:+.1f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f}) |"
                )
        for name, values in gains.items():
            if len(values) > 1:
                seeds = across_seeds(values)
                print(
                    f"| **{condition}** | {seeds.n} seeds | {name} | | | **{100 * seeds.mean:+.1f}** "
                    f"({100 * seeds.minimum:+.1f} to {100 * seeds.maximum:+.1f} over the seeds) |"
                )
    _report_unrewarded(root, clusters)


def _report_unrewarded(root: Path, clusters: np.ndarray) -> None:
    """What nobody rewarded, by code that shares nothing with the reward; count_right checks the reward itself."""
    print("\n| not rewarded | seed | before | after | change, 95 % interval |\n|---|---|---|---|---|")
    for path in sorted(root.glob("real-*/measures.json")):
        measures = json.loads(path.read_text())
        seed = path.parent.name.rpartition("-")[2]
        for name in (*UNREWARDED, *OF_A_GROUP, *OF_PAIRS, "count_right"):
            before, after = (np.array(measures[who][name]) for who in ("student", "trained"))
            gain = paired_gain(before, after, clusters if len(before) == len(clusters) else None, seed=0)
            print(
                f"| {name} | {seed} | {gain.before:.3f} | {gain.after:.3f} "
                f"| {gain.gain:+.3f} ({gain.low:+.3f} to {gain.high:+.3f}) |"
            )


def curves(root: Path) -> None:
    """Draw the mean reward of every iteration, one thin line a run and one thick running mean a condition."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for condition, colour in zip(CONDITIONS, ("#0a7d3b", "#c0392b", "#777777"), strict=True):
        runs = []
        for path in sorted(root.glob(f"{condition.replace(' ', '-')}-*/metrics.jsonl")):
            runs.append([json.loads(line)["reward/mean"] for line in path.read_text().splitlines()])
            axes.plot(range(1, len(runs[-1]) + 1), runs[-1], color=colour, alpha=0.25, linewidth=0.8)
        if runs:
            mean = np.mean([run[: min(map(len, runs))] for run in runs], axis=0)
            smooth = np.convolve(mean, np.ones(7) / 7, mode="valid")
            axes.plot(
                range(4, 4 + len(smooth)), smooth, color=colour, linewidth=2.5, label=f"{condition} ({len(runs)})"
            )
    axes.set(xlabel="iteration", ylabel="mean reward (½ exact + ½ graded count)", ylim=(0.3, 1))
    axes.legend(frameon=False, loc="upper left")
    figure.savefig(root / "curves.png", dpi=110)
    print(root / "curves.png")


def main() -> None:
    """Choose the step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["train", "teacher", "evaluate", "report", "curves"])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--conditions", nargs="+", choices=list(CONDITIONS), default=list(CONDITIONS))
    parser.add_argument("--jobs", type=int, default=2)
    options, extra = parser.parse_known_args()
    if options.step == "train":
        train(options.output, options.seeds, options.conditions, options.jobs, extra)
    else:
        {"teacher": teacher, "evaluate": evaluate, "report": report, "curves": curves}[options.step](options.output)


if __name__ == "__main__":
    main()
