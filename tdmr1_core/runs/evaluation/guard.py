"""The guard: an alarm if the trained reward rises while other rewards fall or the images change too much.

It measures the images of every evaluation and compares them with the first evaluation. The unit of a drift is the
standard deviation of the same measure over the images of the first evaluation (of the later one if the first is 0), so
that one threshold fits all measures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tdmr1_core.config import GuardConfig
from tdmr1_core.engine import Engine
from tdmr1_core.errors import Tdmr1Error, warn
from tdmr1_core.models.roles import TEACHER
from tdmr1_core.preflight.rewards import MIN_GUARD_SAMPLES
from tdmr1_core.records import Prompt
from tdmr1_core.runs.evaluation.evaluate import Evaluation, Measure, measure, sample_images, score_images
from tdmr1_core.runs.evaluation.image_statistics import colour_histogram, diversity, image_statistics, similarity
from tdmr1_core.runs.jsonl import read_lines, step_of
from tdmr1_core.runs.metrics_log import GUARD
from tdmr1_rewards.scoring.runner import RewardRunner

CERTAIN = 3.0
"""A difference counts if it exceeds this many standard errors."""
IMAGES_PER_TEACHER_IMAGE, MAX_TEACHER_IMAGES = 16, 32
"""The teacher samples one image per 16 images of an evaluation, but at most 32."""


class GuardStopped(Tdmr1Error):
    """The guard stopped the run."""


def _warn_few(counts: Mapping[str, int]) -> None:
    """Warn of measures with too few values. `counts` has the number of images or groups of each."""
    if counts:
        listed = ", ".join(f"{name.partition('/')[2].replace('_', ' ')} ({n})" for name, n in counts.items())
        warn(
            f"the guard ignores measures with fewer than {MIN_GUARD_SAMPLES} values: {listed}",
            code="guard-limited",
            counts=dict(counts),
            needed=MIN_GUARD_SAMPLES,
        )


@dataclass(frozen=True)
class GuardReading:
    """The measures of one evaluation by name, such as `reward/object_count` or `picture/entropy`, and its alarms."""

    step: int
    measures: dict[str, Measure]
    alarms: tuple[str, ...] = ()
    subject: str = ""
    """The `subject_fingerprint` of the prompts and rewards; only readings with the same subject are compared."""

    def row(self) -> dict[str, Any]:
        """The line of guard.jsonl, without the key `step`."""
        numbers = {f"{name}/{key}": getattr(m, key) for name, m in self.measures.items() for key in ("mean", "stderr")}
        counts = {name: value.n for name, value in self.measures.items()}
        return {**numbers, "n": counts, "alarms": self.alarms, "subject": self.subject}

    @classmethod
    def of(cls, row: dict[str, Any]) -> GuardReading:
        """Read a line of guard.jsonl. Raises one of `durable_files.MALFORMED` for a malformed line."""
        measures = {name: Measure.of(row, name, n) for name, n in row["n"].items()}
        return cls(step_of(row), measures, tuple(map(str, row["alarms"])), str(row.get("subject", "")))


def first_reading(readings: Sequence[GuardReading], subject: str) -> GuardReading | None:
    """The first reading of a subject; later readings of the same subject are compared with it."""
    return next((reading for reading in readings if reading.subject == subject), None)


@dataclass(frozen=True)
class Drift:
    """The change of one measure since the first reading."""

    name: str
    before: Measure
    after: Measure

    @property
    def change(self) -> float:
        """The change of the mean; above 0 if it rose."""
        return self.after.mean - self.before.mean

    @property
    def size(self) -> float:
        """The change in standard deviations of single images.

        It is 0 if a mean or a deviation is NaN, and infinite if the mean changed although both deviations are 0.
        """
        deviations = (self.before.stderr * math.sqrt(self.before.n), self.after.stderr * math.sqrt(self.after.n))
        if any(map(math.isnan, (self.change, *deviations))):
            return 0.0
        deviation = deviations[0] or deviations[1]
        if deviation == 0:
            return math.copysign(math.inf, self.change) if self.change else 0.0
        return self.change / deviation

    @property
    def certain(self) -> bool:
        """Whether the change exceeds `CERTAIN` standard errors."""
        error = math.hypot(self.before.stderr, self.after.stderr)
        return abs(self.change) > CERTAIN * error

    def __str__(self) -> str:
        subject = self.name.partition("/")[2].replace("_", " ")
        verb = "rose" if self.change > 0 else "fell"
        return f"{subject} {verb} from {self.before.mean:.3g} to {self.after.mean:.3g} ({self.size:+.1f} deviations)"


def drifts(first: GuardReading, now: GuardReading) -> list[Drift]:
    """The drift of every measure that both readings have."""
    known = first.measures
    return [Drift(name, known[name], value) for name, value in now.measures.items() if name in known]


def find_alarms(
    first: GuardReading, now: GuardReading, threshold: float, directions: Mapping[str, int]
) -> tuple[str, ...]:
    """An alarm if a trained reward improved and another measure drifted too far (`is_too_far`); otherwise none.

    `directions` has 1 for each trained reward that should rise and -1 for one that should fall.
    """
    found = drifts(first, now)
    signs = {f"reward/{name}": direction for name, direction in directions.items()}
    gained = [d for d in found if d.certain and d.change * signs.get(d.name, 0) > 0]
    wrong = [d for d in found if is_too_far(d, threshold)]
    if not gained or not wrong:
        return ()
    wrong.sort(key=lambda d: -abs(d.size))
    return (f"{', '.join(map(str, gained))} while {', '.join(map(str, wrong))}",)


def is_too_far(drift: Drift, threshold: float) -> bool:
    """Whether a measure drifted by more than the threshold. A trained reward never does.

    Held-out rewards, diversity and similarity count if they fall, the other image statistics in both directions.
    """
    kind, _, name = drift.name.partition("/")
    if kind == "reward" or not drift.certain:
        return False
    two_sided = kind == "picture" and name not in ("diversity", "similarity_to_teacher")
    return (abs(drift.size) if two_sided else -drift.size) > threshold


@dataclass
class Guard:
    """Reads evaluations and compares them with the first one.

    `trained` has the direction of each trained reward (see `find_alarms`); `held_out_rewards` scores the others, and is
    None if there are none.
    """

    settings: GuardConfig
    trained: Mapping[str, int]
    held_out_rewards: RewardRunner | None
    subject: str
    first: GuardReading | None = None
    _teacher: dict[str, np.ndarray] | None = field(default=None, repr=False)

    def recall(self, folder: Path, evaluated: int) -> None:
        """Load the first reading of a resumed run, up to iteration `evaluated`; later ones are repeated.

        Warns if the run has such readings, but none of the same subject.
        """
        readings = [reading for reading in read_lines(folder / GUARD, GuardReading.of) if reading.step <= evaluated]
        self.first = first_reading(readings, self.subject)
        if readings and self.first is None:
            warn(
                "the evaluation settings, prompts or rewards changed: the guard compares with the next evaluation",
                code="guard-limited",
                subject=self.subject,
            )

    def read(self, engine: Engine, evaluations: Sequence[Evaluation]) -> GuardReading | None:
        """Measure the images of one role on all prompt sets, and compare them with the first reading.

        With several processes, each measures its own images. All call this together; only the first gets the reading.
        """
        values: dict[str, list[float | None]] = {}
        for evaluation in evaluations:
            for name, scores in self._values(engine, evaluation).items():
                values.setdefault(name, []).extend(scores)
        if not engine.processes.first:
            return None
        measures = {name: measure(scores) for name, scores in values.items()}
        enough = {name: value for name, value in measures.items() if value.n >= MIN_GUARD_SAMPLES}
        reading = GuardReading(engine.iteration_index, enough, subject=self.subject)
        if self.first is None:
            self.first = reading
            _warn_few({name: value.n for name, value in measures.items() if value.n < MIN_GUARD_SAMPLES})
            return reading
        return replace(reading, alarms=find_alarms(self.first, reading, self.settings.threshold, self.trained))

    def _values(self, engine: Engine, evaluation: Evaluation) -> dict[str, Sequence[float | None]]:
        """The values of every measure, one per image or one per group, over the images of all processes."""
        trained: dict[str, Sequence[float | None]] = {
            f"reward/{name}": scores for name, scores in evaluation.scores.items() if name in self.trained
        }
        processes = engine.processes
        return trained | processes.join(processes.on_each(lambda: self._values_here(engine, evaluation)))

    def _values_here(self, engine: Engine, evaluation: Evaluation) -> dict[str, Sequence[float | None]]:
        """The values of the unrewarded measures, for the images of this process."""
        samples, values = evaluation.samples, dict[str, Sequence[float | None]]()
        teacher = self._teacher_histograms(engine, evaluation.prompts)
        if not samples.prompts:
            return {}
        if self.held_out_rewards is not None:
            first = samples.group_ids[0] * samples.group_ids.count(samples.group_ids[0])
            with self.held_out_rewards.preserving_states():
                scored = score_images(engine, self.held_out_rewards, samples, first, engine.config.evaluation.seed)
            values |= {f"held_out/{name}": scores for name, scores in scored.items()}
        statistics = image_statistics(samples.images)
        statistics["diversity"] = diversity(samples.images, samples.group_ids)
        texts = [prompt.text for prompt in samples.prompts]
        statistics["similarity_to_teacher"] = similarity(samples.images, texts, teacher)
        return values | {f"picture/{name}": value.tolist() for name, value in statistics.items()}

    def _teacher_histograms(self, engine: Engine, all_prompts: Sequence[Prompt]) -> dict[str, np.ndarray]:
        """Mean colour histogram (64,) of the teacher's images by prompt, sampled once for prompts of the first set."""
        if self._teacher is None:
            prompts = list({prompt.text: prompt for prompt in all_prompts}.values())
            wanted = min(MAX_TEACHER_IMAGES, len(all_prompts) // IMAGES_PER_TEACHER_IMAGE)
            chosen = prompts[:: max(1, len(prompts) // wanted)][:wanted] if wanted else []
            self._teacher = {}
            if chosen:
                per_prompt = max(1, wanted // len(chosen))
                sampled = sample_images(engine, TEACHER, chosen, per_prompt, engine.config.evaluation.seed)
                histograms = colour_histogram(sampled.images).reshape(len(chosen), per_prompt, -1).mean(axis=1)
                self._teacher = {prompt.text: row for prompt, row in zip(chosen, histograms, strict=True)}
        return self._teacher
