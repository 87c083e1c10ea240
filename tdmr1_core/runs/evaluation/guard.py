"""The guard: an alarm when the trained reward rises while other rewards fall or the pictures change too much.

What it looks at is measured on the pictures of evaluations, and compared with the first one. Every departure is in
units of the deviation that the same number had over the first pictures, so that one threshold serves them all; where
those had none, over the later ones.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from tdmr1_core.config import GuardConfig, RunConfig
from tdmr1_core.config_loading import dump
from tdmr1_core.engine import Engine
from tdmr1_core.errors import Tdmr1Error, warn
from tdmr1_core.models.roles import TEACHER
from tdmr1_core.preflight.evaluation_rewards import FEWEST
from tdmr1_core.runs.checkpoints.fingerprints import Fingerprints
from tdmr1_core.runs.evaluation.evaluate import Evaluation, Measure, draw, measure
from tdmr1_core.runs.evaluation.image_statistics import colour_shares, diversity, picture_statistics, similarity
from tdmr1_core.runs.jsonl import read_lines, step_of
from tdmr1_core.runs.metrics_log import GUARD
from tdmr1_rewards.api import RewardBatch, RewardContext
from tdmr1_rewards.scoring.runner import RewardRunner

CERTAIN = 3.0
"""Standard errors that a difference must have before it counts."""
TEACHER_SHARE, MOST_TEACHER_IMAGES = 16, 32
"""One picture of the teacher for so many of an evaluation, and at most so many."""


class GuardStopped(Tdmr1Error):
    """The guard has stopped the run."""


def _tell_few(counts: Mapping[str, int]) -> None:
    """Say which measures the guard goes without, and on how many images or groups each was measured."""
    if counts:
        named = ", ".join(f"{name.partition('/')[2].replace('_', ' ')} ({n})" for name, n in counts.items())
        warn(f"the guard does not look at what it has measured fewer than {FEWEST} times: {named}")


@dataclass(frozen=True)
class GuardReading:
    """One look at the pictures: measures by name, such as `reward/object_count` or `picture/entropy`."""

    step: int
    measures: dict[str, Measure]
    alarms: tuple[str, ...] = ()
    subject: str = ""
    """Which pictures and judges these are, by `subject_fingerprint`; only looks at the same are compared."""

    def row(self) -> dict[str, Any]:
        """As a line of guard.jsonl, but for the step."""
        numbers = {f"{name}/{key}": getattr(m, key) for name, m in self.measures.items() for key in ("mean", "stderr")}
        counts = {name: value.n for name, value in self.measures.items()}
        return {**numbers, "n": counts, "alarms": self.alarms, "subject": self.subject}

    @classmethod
    def of(cls, row: dict[str, Any]) -> GuardReading:
        """The look that a line tells of. Raises one of `storage.MALFORMED` for a line of something else."""
        measures = {name: Measure.of(row, name, n) for name, n in row["n"].items()}
        return cls(step_of(row), measures, tuple(map(str, row["alarms"])), str(row.get("subject", "")))


def subject_fingerprint(config: RunConfig, foundations: Fingerprints) -> str:
    """A hash of all that says which pictures the guard looks at, and by which rewards they are judged."""
    settings = dump(config)
    told = {name: settings["evaluation"][name] for name in ("seed", "images", "rewards")}
    told |= {"guard": settings["guard"]["rewards"], "contents": foundations.model_dump()}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def first_reading(looks: Sequence[GuardReading], subject: str) -> GuardReading | None:
    """The look that others with the same subject are compared with."""
    return next((look for look in looks if look.subject == subject), None)


@dataclass(frozen=True)
class Drift:
    """How far a measure has gone since the first look, in deviations of single pictures; above 0 it has risen."""

    name: str
    before: Measure
    after: Measure

    @property
    def change(self) -> float:
        """Of the mean."""
        return self.after.mean - self.before.mean

    @property
    def size(self) -> float:
        """0 where nothing can be said; infinite between pictures that all had one value and all have another."""
        deviations = (self.before.stderr * math.sqrt(self.before.n), self.after.stderr * math.sqrt(self.after.n))
        if any(map(math.isnan, (self.change, *deviations))):
            return 0.0
        deviation = deviations[0] or deviations[1]
        if deviation == 0:
            return math.copysign(math.inf, self.change) if self.change else 0.0
        return self.change / deviation

    @property
    def certain(self) -> bool:
        """Whether it is more than chance."""
        error = math.hypot(self.before.stderr, self.after.stderr)
        return abs(self.change) > CERTAIN * error

    def __str__(self) -> str:
        what = self.name.partition("/")[2].replace("_", " ")
        verb = "rose" if self.change > 0 else "fell"
        return f"{what} {verb} from {self.before.mean:.3g} to {self.after.mean:.3g} ({self.size:+.1f} deviations)"


def drifts(first: GuardReading, now: GuardReading) -> list[Drift]:
    """How far every measure has gone that both looks have."""
    known = first.measures
    return [Drift(name, known[name], value) for name, value in now.measures.items() if name in known]


def find_alarms(
    first: GuardReading, now: GuardReading, threshold: float, directions: Mapping[str, int]
) -> tuple[str, ...]:
    """A sentence if a trained reward went its way for certain while something departed by more than the threshold.

    Held-out rewards, diversity and similarity count where they fall; a picture's own numbers whichever way they go.
    """
    found = drifts(first, now)
    ways = {f"reward/{name}": direction for name, direction in directions.items()}
    gained = [d for d in found if d.certain and d.change * ways.get(d.name, 0) > 0]
    wrong = [d for d in found if is_too_far(d, threshold)]
    if not gained or not wrong:
        return ()
    wrong.sort(key=lambda d: -abs(d.size))
    return (f"{', '.join(map(str, gained))} while {', '.join(map(str, wrong))}",)


def is_too_far(departure: Drift, threshold: float) -> bool:
    """Whether something other than a trained reward has gone too far."""
    kind, _, name = departure.name.partition("/")
    if kind == "reward" or not departure.certain:
        return False
    two_sided = kind == "picture" and name not in ("diversity", "similarity_to_teacher")
    return (abs(departure.size) if two_sided else -departure.size) > threshold


@dataclass
class Guard:
    """Looks at evaluations; `trained` are directions by reward, `judge` scores held-out rewards, if there are any."""

    settings: GuardConfig
    trained: Mapping[str, int]
    judge: RewardRunner | None
    subject: str
    first: GuardReading | None = None
    _teacher: dict[str, np.ndarray] | None = field(default=None, repr=False)

    def recall(self, folder: Path) -> None:
        """Take up the first look of a run that is continued, if it was at what is looked at now."""
        looks = read_lines(folder / GUARD, GuardReading.of)
        self.first = first_reading(looks, self.subject)
        if looks and self.first is None:
            warn("the guard has not looked at these pictures with these judges yet: it begins anew")

    def read(self, engine: Engine, evaluations: Sequence[Evaluation]) -> GuardReading:
        """Measure the pictures of one role on several prompt sets, and compare them with the first look."""
        values: dict[str, list[float | None]] = {}
        for evaluation in evaluations:
            for name, scores in self._values(engine, evaluation).items():
                values.setdefault(name, []).extend(scores)
        measures = {name: measure(scores) for name, scores in values.items()}
        enough = {name: value for name, value in measures.items() if value.n >= FEWEST}
        look = GuardReading(engine.iteration_index, enough, subject=self.subject)
        if self.first is None:
            self.first = look
            _tell_few({name: value.n for name, value in measures.items() if value.n < FEWEST})
            return look
        return replace(look, alarms=find_alarms(self.first, look, self.settings.threshold, self.trained))

    def _values(self, engine: Engine, evaluation: Evaluation) -> dict[str, Sequence[float | None]]:
        """Every number the guard looks at, of each image or group."""
        pictures = evaluation.pictures
        texts = [prompt.text for prompt in pictures.prompts]
        values: dict[str, Sequence[float | None]] = {
            f"reward/{name}": scores for name, scores in evaluation.scores.items() if name in self.trained
        }
        if self.judge is not None:
            batch = RewardBatch(
                images=pictures.images,
                prompts=texts,
                metadata=[prompt.metadata for prompt in pictures.prompts],
                group_ids=pictures.group_ids,
                image_ids=list(range(len(texts))),
                context=RewardContext(None, engine.iteration_index, engine.config.evaluation.seed),
            )
            with self.judge.unremembered():
                scored = self.judge.score(batch)
            values |= {f"held_out/{name}": scores for name, scores in scored.per_reward.items()}
        numbers = picture_statistics(pictures.images)
        numbers["diversity"] = diversity(pictures.images, pictures.group_ids)
        numbers["similarity_to_teacher"] = similarity(pictures.images, texts, self._teacher_shares(engine, evaluation))
        return values | {f"picture/{name}": value.tolist() for name, value in numbers.items()}

    def _teacher_shares(self, engine: Engine, evaluation: Evaluation) -> dict[str, np.ndarray]:
        """Mean colour shares (64,) of the teacher's pictures by prompt, drawn once, for prompts of the first set."""
        if self._teacher is None:
            prompts = list({prompt.text: prompt for prompt in evaluation.pictures.prompts}.values())
            wanted = min(MOST_TEACHER_IMAGES, len(evaluation.pictures.prompts) // TEACHER_SHARE)
            chosen = prompts[:: max(1, len(prompts) // wanted)][:wanted] if wanted else []
            self._teacher = {}
            if chosen:
                each = max(1, wanted // len(chosen))
                drawn = draw(engine, TEACHER, chosen, each, engine.config.evaluation.seed)
                shares = colour_shares(drawn.images).reshape(len(chosen), each, -1).mean(axis=1)
                self._teacher = {prompt.text: share for prompt, share in zip(chosen, shares, strict=True)}
        return self._teacher
