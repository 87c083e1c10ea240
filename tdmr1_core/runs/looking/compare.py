"""Compares runs: scores at the start, at the end and at their best, gains with intervals, and costs.

Gains are paired image by image where both evaluations have the same prompts and seed and the scores of their images are
stored. Everything is read from the run folders; no model is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.preflight.rewards import trained_directions
from tdmr1_core.runs.checkpoints.run_config import Header, read_header
from tdmr1_core.runs.evaluation.evaluate import Measure
from tdmr1_core.runs.looking.fairness import RunFacts, SettingDifference, different_settings, unfair
from tdmr1_core.runs.looking.image_scores import ImageScores, Place, pair, read_image_scores
from tdmr1_core.runs.looking.intervals import Gain, paired_gain, unpaired_gain
from tdmr1_core.runs.output.report import Report, read_report
from tdmr1_core.runs.output.report_tables import machines

Point = tuple[int, Measure]
"""An iteration and the measure of its evaluation."""
Subject = tuple[str, str]
"""A prompt set and a reward, by their names."""


@dataclass(frozen=True)
class Cost:
    """What the training of a run took. Evaluations, checkpoints and the start are not counted.

    `images` were sampled and scored, `seconds` are the time of all iterations. `images_per_second` is NaN without
    iterations.
    """

    iterations: int
    images: int
    seconds: float
    images_per_second: float
    hardware: str | None


@dataclass(frozen=True)
class ComparedRun:
    """A run as it is compared. `name` is short and different from those of the other runs."""

    name: str
    report: Report
    header: Header
    image_scores: Mapping[Place, ImageScores]

    @property
    def points(self) -> dict[Subject, list[Point]]:
        """The evaluations of each prompt set and reward, in the order of the iterations."""
        return {(each.prompts, each.reward): sorted(each.points, key=_step) for each in self.report.evaluations}

    @property
    def cost(self) -> Cost:
        """What the training took."""
        rows, batch = self.report.metrics, self.report.config.batch
        timed = [row["time/iteration"] for row in rows if "time/iteration" in row]
        images, seconds = len(rows) * batch.groups * batch.group_size, float(sum(timed))
        of_timed = len(timed) * batch.groups * batch.group_size
        rate = of_timed / seconds if seconds > 0 else math.nan
        return Cost(self.report.iterations, images, seconds, rate, hardware_of(self.report))

    @property
    def facts(self) -> RunFacts:
        """What decides whether the run can be compared with others."""
        return RunFacts(self.name, self.report.config, self.header, self.cost.images)


@dataclass(frozen=True)
class Difference:
    """A gain, and why it is not paired; `unpaired` is None if it is."""

    gain: Gain
    unpaired: str | None


@dataclass(frozen=True)
class Standing:
    """A run on one prompt set and reward.

    `best` is the evaluation with the highest mean (the lowest for a reward that training reduces). `own` is the gain of
    the last evaluation over the first one of the run (None if there is one evaluation). `against` is its gain over the
    last evaluation of the first compared run (None for that run, or if it lacks the evaluation).
    """

    run: str
    first: Point
    final: Point
    best: Point
    own: Difference | None
    against: Difference | None


@dataclass(frozen=True)
class Comparison:
    """Several runs; the first one is the baseline. `warnings` say why a comparison with it would be unfair."""

    runs: tuple[ComparedRun, ...]
    standings: dict[Subject, list[Standing]]
    warnings: list[str]
    settings: list[SettingDifference]


def compare(folders: Sequence[Path]) -> Comparison:
    """Compare run folders with the first of them.

    Raises Tdmr1Error for fewer than two different folders, and for a folder that is not a run.
    """
    resolved = [folder.resolve() for folder in folders]
    twice = next((folder for place, folder in enumerate(folders) if resolved[place] in resolved[:place]), None)
    if twice is not None or len(folders) < 2:
        raise Tdmr1Error(
            f"the run {twice} is named twice" if twice else "a comparison needs two runs or more",
            "name different runs: tdmr1 compare RUN RUN",
            code="usage",
            values={"runs": [str(folder) for folder in folders]},
        )
    runs = tuple(map(_read, short_labels(folders), folders))
    points = [run.points for run in runs]
    subjects = dict.fromkeys(subject for each in points for subject in each)
    standings = {
        subject: [_standing(run, runs[0], subject) for run, each in zip(runs, points, strict=True) if subject in each]
        for subject in subjects
    }
    warnings = [text for other in runs[1:] for text in unfair(runs[0].facts, other.facts)]
    return Comparison(runs, standings, warnings, different_settings([run.report.config for run in runs]))


def hardware_of(report: Report) -> str | None:
    """The device and the CPU cores of each session, such as "2 x NVIDIA H200 (141 GB), 16 CPU cores".

    Sessions on the same hardware are named once. None if the run did not record it.
    """
    found = []
    for machine in machines(report):
        count = machine.get("processes", "1")
        device = machine.get("device", "unknown device")
        cores = machine.get("CPU cores", "unknown number of")
        found.append(f"{device if count == '1' else f'{count} x {device}'}, {cores} CPU cores")
    return "; then ".join(dict.fromkeys(found)) or None


def short_labels(folders: Sequence[Path]) -> list[str]:
    """The end of each path: its last part, with as many folders before it as distinguish it from the others."""
    parts = [folder.resolve().parts for folder in folders]
    labels = []
    for own in parts:
        others = [other for other in parts if other != own]
        count = 1
        while count < len(own) and any(other[-count:] == own[-count:] for other in others):
            count += 1
        labels.append("/".join(own[-count:]))
    return labels


def difference(
    before: Measure, after: Measure, pairs: tuple[ImageScores | None, ImageScores | None], reward: str
) -> Difference:
    """The gain of `after` over `before`, paired if the scores of their images allow it."""
    first, second = pairs
    if first is None or second is None:
        return Difference(unpaired_gain(before, after), "the scores of single images are not stored")
    if first.seed != second.seed:
        return Difference(unpaired_gain(before, after), "the seeds of the evaluations differ")
    found = pair(first, second, reward)
    if found is None:
        return Difference(unpaired_gain(before, after), "the evaluations have no two images in common")
    return Difference(paired_gain(found.before, found.after, found.prompts), None)


def _read(name: str, folder: Path) -> ComparedRun:
    return ComparedRun(name, read_report(folder), read_header(folder), read_image_scores(folder))


def _standing(run: ComparedRun, baseline: ComparedRun, subject: Subject) -> Standing:
    prompts, reward = subject
    points = run.points[subject]
    first, final = points[0], points[-1]
    direction = trained_directions(run.report.config).get(reward, 1)
    best = max(points, key=lambda point: (direction * point[1].mean, -point[0]))
    own = against = None
    if len(points) > 1:
        stored = run.image_scores.get((prompts, first[0])), run.image_scores.get((prompts, final[0]))
        own = difference(first[1], final[1], stored, reward)
    others = baseline.points.get(subject)
    if run is not baseline and others is not None:
        last, measure = others[-1]
        stored = baseline.image_scores.get((prompts, last)), run.image_scores.get((prompts, final[0]))
        against = difference(measure, final[1], stored, reward)
    return Standing(run.name, first, final, best, own, against)


def _step(point: Point) -> int:
    return point[0]
