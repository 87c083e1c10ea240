"""Tables and curves of `tiny_learning.py`, as they stand in the README."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from intervals import Gain, across_seeds, paired_gain
from judge import analyse, diversity, judge

from tdmr1_core.tiny import world

CONDITIONS = {
    "real": "the reward as it is",
    "permuted": "*control:* advantages permuted in their groups",
    "reward off": "*control:* reward term off",
}
STUDENT, MEASURES = "student.json", "measures.json"
"""What the student measures, and each run's trained model."""
PER_CAPTION, PER_PAIR = 24, 2
"""Pictures of each count caption, and of each caption of a pair."""
OF_PAIRS = ("binding_right", "relation_right")
"""Measured on captions of another kind, which these runs never draw."""
OF_A_GROUP = ("pixel_distance", "position_spread", "layout_distance")
UNREWARDED = {
    "shape_right": "objects of the asked shape, share",
    "colour_right": "objects of the asked colour, share",
    "crispness": "crispness, 0 to 1",
    "background_noise": "noise of the background, 0 to 0.5",
    "size": "radius, pixels",
    "size_error": "radius outside the world's range, pixels",
    "position_x": "mean x, pixels",
    "position_y": "mean y, pixels",
    "pixel_distance": "difference of pictures in a group, 0 to 1",
    "position_spread": "spread of positions in a group, pixels",
    "layout_distance": "difference of layouts in a group, pixels",
    "binding_right": "pairs: the two objects asked for, share",
    "relation_right": "pairs: they lie as asked, share",
}

Measures = dict[str, list[float]]


def run_folder(root: Path, condition: str, seed: int) -> Path:
    """Where a run of a condition and seed lies."""
    return root / f"{condition.replace(' ', '-')}-{seed}"


def judge_unrewarded(images: np.ndarray, metadata: Sequence[dict], group_ids: np.ndarray) -> Measures:
    """What the judge says of pictures uint8 (N, 24, 24, 3) and of their groups, and its own count."""
    analyses = analyse(images)
    judged = judge(images, metadata, analyses) | diversity(images, group_ids, analyses)
    chosen = [name for name in UNREWARDED if name not in OF_PAIRS]
    return {name: judged[name].tolist() for name in (*chosen, "count_right")}


def tables(root: Path) -> None:
    """Print the tables as Markdown."""
    captions = world.count_captions()
    clusters = np.repeat(np.arange(len(captions)), PER_CAPTION)
    held_out = np.repeat([caption.held_out for caption in captions], PER_CAPTION)
    print(f"n = {len(clusters)} pairs of caption and noise a run; {held_out.sum()} of captions never trained on\n")
    print("| run | seed | before | after | gain | gain on captions never trained on |\n|---|---|---|---|---|---|")
    before = json.loads((root / STUDENT).read_text())
    for condition, label in CONDITIONS.items():
        gains = {}
        for seed, after in _finished(root, condition).items():
            gains[seed] = [_exact(before, after, rows, clusters) for rows in (np.ones_like(held_out), held_out)]
            every, never = gains[seed]
            print(f"| {label} | {seed} | {_percent(every.before)} | {_percent(every.after)} | ", end="")
            print(f"{_with_interval(every)} | {_with_interval(never)} |")
        if len(gains) > 1:
            means = [across_seeds([gain[column] for gain in gains.values()]).mean for column in (0, 1)]
            print(f"| {label}, mean | | | | **{_signed(means[0])}** | **{_signed(means[1])}** |")
    teachers = _teachers(root)
    for guidance, values in teachers.items():
        exact = np.array(values["exact"])
        error = _percent(float(exact.std() / len(exact) ** 0.5))
        print(f"\nteacher, 28 steps, guidance {guidance:g}: {_percent(exact.mean())} % (standard error {error})")
    best = max(teachers, key=lambda guidance: np.mean(teachers[guidance]["exact"]), default=None)
    _print_unrewarded(before, list(_finished(root, "real").values()), clusters, teachers.get(best, {}))


def _print_unrewarded(student: Measures, runs: Sequence[Measures], clusters: np.ndarray, teacher: Measures) -> None:
    """Student, trained models, best teacher and the world's own pictures of the right number, side by side."""
    itself = the_world_itself()
    print("\n| measure | student | after, by seed | change, mean over seeds | teacher | the world itself |")
    print("|---|---|---|---|---|---|")
    for name, label in UNREWARDED.items():
        before = np.array(student[name])
        after = [np.array(run[name]) for run in runs]
        gain = paired_gain(before, np.mean(after, axis=0), clusters if len(before) == len(clusters) else None, seed=0)
        by_seed = ", ".join(f"{np.nanmean(values):.3f}" for values in after)
        compared = [f"{np.nanmean(values[name]):.3f}" if name in values else "" for values in (teacher, itself)]
        change = f"{gain.gain:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})"
        print(f"| {label} | {np.nanmean(before):.3f} | {by_seed} | {change} | {compared[0]} | {compared[1]} |")
    counted = ", ".join(_percent(np.mean(run["count_right"])) for run in runs)
    print(f"\nThe judge's own count after training, by seed: {counted} % right")


def the_world_itself() -> Measures:
    """The same measures of pictures that the world drew rightly: what a perfect model would score."""
    rng = np.random.default_rng(0)
    captions = world.count_captions()
    drawn: dict[str, list[world.Scene]] = {caption.text: [] for caption in captions}
    while min(map(len, drawn.values())) < PER_CAPTION:
        scene = world.sample_scene(rng, pair_share=0.0)
        first = scene.objects[0]
        drawn[world.CountCaption(len(scene.objects), first.colour, first.shape).text].append(scene)
    scenes = [scene for caption in captions for scene in drawn[caption.text][:PER_CAPTION]]
    metadata = [caption.metadata for caption in captions for _ in range(PER_CAPTION)]
    images = np.stack([world.render(scene, rng) for scene in scenes])
    measures = judge_unrewarded(images, metadata, np.repeat(np.arange(len(captions)), PER_CAPTION))
    pairs = [world.sample_scene(rng, pair_share=1.0) for _ in range(len(images))]
    right = [
        world.PairCaption((a.colour, a.shape), scene.relation, (b.colour, b.shape)).metadata
        for scene in pairs
        for a, b in [scene.objects]
    ]
    judged = judge(np.stack([world.render(scene, rng) for scene in pairs]), right)
    return measures | {name: judged[name].tolist() for name in OF_PAIRS}


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


def _finished(root: Path, condition: str) -> dict[int, Measures]:
    """The measures of the trained model of every run of a condition, by seed."""
    folders = sorted(path.parent for path in root.glob(f"{condition.replace(' ', '-')}-*/{MEASURES}"))
    return {int(folder.name.rpartition("-")[2]): json.loads((folder / MEASURES).read_text()) for folder in folders}


def _teachers(root: Path) -> dict[float, Measures]:
    """The teacher's measures by guidance scale."""
    found = {float(path.stem.partition("-")[2]): path for path in root.glob("teacher-*.json")}
    return {guidance: json.loads(found[guidance].read_text()) for guidance in sorted(found)}


def _exact(before: Measures, after: Measures, rows: np.ndarray, clusters: np.ndarray) -> Gain:
    chosen = rows.astype(bool)
    return paired_gain(np.array(before["exact"])[chosen], np.array(after["exact"])[chosen], clusters[chosen], seed=0)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _signed(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")


def _with_interval(gain: Gain) -> str:
    return f"{_signed(gain.gain)} ({_signed(gain.low)} to {_signed(gain.high)})"
