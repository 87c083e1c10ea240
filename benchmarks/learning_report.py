"""The tables and the plot of `tiny_learning.py`, as shown in docs/results.md and docs/tiny_world.md."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from intervals import across_seeds
from subjects import Measures, Subject

from tdmr1_core.runs.looking.intervals import Gain, paired_gain

CONDITIONS = {
    "real": "with the reward",
    "permuted": "*control:* advantages permuted within groups",
    "reward off": "*control:* reward term off",
}
STUDENT, MEASURES = "student.json", "measures.json"
"""Files with the metrics of the student, and of the trained model of each run."""


def run_folder(root: Path, condition: str, seed: int) -> Path:
    """The folder of the run with a condition and a seed."""
    return root / f"{condition.replace(' ', '-')}-{seed}"


def tables(root: Path, subject: Subject) -> None:
    """Print the tables as Markdown."""
    sheet, before = subject.sheets[0], json.loads((root / STUDENT).read_text())
    teachers = _teachers(root)
    total, held_out = len(sheet.clusters), int(sheet.held_out.sum())
    print(f"n = {total} pairs of caption and noise per run, {held_out} with held-out captions")
    for name, label in subject.headlines.items():
        _print_headline(root, subject, name, label, before)
        for guidance, values in teachers.items():
            measured = np.array(values[name])
            error = _percent(float(measured.std() / len(measured) ** 0.5))
            print(f"\nteacher, 28 steps, guidance {guidance:g}: {_percent(measured.mean())} % (standard error {error})")
    first = next(iter(subject.headlines))
    best = max(teachers, key=lambda guidance: np.mean(teachers[guidance][first]), default=None)
    _print_unrewarded(subject, before, list(_finished(root, "real").values()), teachers.get(best, {}))


def _print_headline(root: Path, subject: Subject, name: str, label: str, before: Measures) -> None:
    """The gain of every run in percent, on all captions and on held-out captions."""
    sheet = subject.sheets[0]
    masks = (np.ones_like(sheet.held_out), sheet.held_out)
    print(f"\n{label}, %:\n\n| run | seed | before | after | gain | gain on held-out captions |")
    print("|---|---|---|---|---|---|")
    for condition, title in CONDITIONS.items():
        gains = {}
        for seed, after in _finished(root, condition).items():
            gains[seed] = [_gain(before[name], after[name], mask, sheet.clusters) for mask in masks]
            overall, held_out = gains[seed]
            print(f"| {title} | {seed} | {_percent(overall.before)} | {_percent(overall.after)} | ", end="")
            print(f"{_with_interval(overall)} | {_with_interval(held_out)} |")
        if len(gains) > 1:
            means = [across_seeds([gain[column] for gain in gains.values()]).mean for column in (0, 1)]
            print(f"| {title}, mean | | | | **{_signed(means[0])}** | **{_signed(means[1])}** |")


def _print_unrewarded(subject: Subject, student: Measures, runs: Sequence[Measures], teacher: Measures) -> None:
    """Compare student, trained models, best teacher and correct images of the world."""
    reference = {name: values for sheet in subject.sheets for name, values in sheet.reference_measures().items()}
    clusters_of = {len(sheet.clusters): sheet.clusters for sheet in subject.sheets}
    print("\n| metric | student | after, by seed | change, mean over seeds | teacher | images of the world |")
    print("|---|---|---|---|---|---|")
    for name, label in subject.unrewarded.items():
        before = np.array(student[name])
        after = [np.array(run[name]) for run in runs]
        gain = paired_gain(before, np.mean(after, axis=0), clusters_of.get(len(before)), seed=0)
        by_seed = ", ".join(f"{np.nanmean(values):.3f}" for values in after)
        compared = [f"{np.nanmean(values[name]):.3f}" if name in values else "" for values in (teacher, reference)]
        change = f"{gain.gain:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})"
        print(f"| {label} | {np.nanmean(before):.3f} | {by_seed} | {change} | {compared[0]} | {compared[1]} |")


def curves(root: Path, subject: Subject) -> None:
    """Plot the mean reward per iteration: a thin line per run, a thick running mean per condition."""
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
    axes.set(xlabel="iteration", ylabel=f"mean reward ({subject.rewarded})", ylim=(None, 1))
    axes.legend(frameon=False, loc="upper left")
    figure.savefig(root / "curves.png", dpi=110)
    print(root / "curves.png")


def _finished(root: Path, condition: str) -> dict[int, Measures]:
    """The metrics of the trained model of every run of a condition, by seed."""
    folders = sorted(path.parent for path in root.glob(f"{condition.replace(' ', '-')}-*/{MEASURES}"))
    return {int(folder.name.rpartition("-")[2]): json.loads((folder / MEASURES).read_text()) for folder in folders}


def _teachers(root: Path) -> dict[float, Measures]:
    """The metrics of the teacher, by guidance scale."""
    found = {float(path.stem.partition("-")[2]): path for path in root.glob("teacher-*.json")}
    return {guidance: json.loads(found[guidance].read_text()) for guidance in sorted(found)}


def _gain(before: Sequence[float], after: Sequence[float], rows: np.ndarray, clusters: np.ndarray) -> Gain:
    chosen = rows.astype(bool)
    return paired_gain(np.array(before)[chosen], np.array(after)[chosen], clusters[chosen], seed=0)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"


def _signed(fraction: float) -> str:
    return f"{100 * fraction:+.1f}".replace("-", "−")


def _with_interval(gain: Gain) -> str:
    return f"{_signed(gain.gain)} ({_signed(gain.low)} to {_signed(gain.high)})"
