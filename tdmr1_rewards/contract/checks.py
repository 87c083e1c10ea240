"""The checks of `check_reward`, one method each, and their report."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from tdmr1_rewards.api import RewardExample
from tdmr1_rewards.contract import corruptions
from tdmr1_rewards.errors import Tdmr1Error, describe_error
from tdmr1_rewards.scoring.single_reward import ImageToScore, SingleReward
from tdmr1_rewards.sources.sample_images import draw_samples

Outcome = Literal["passed", "warned", "failed", "not applicable"]
Scores = list[float | None]
Finding = tuple[Outcome, str]

TOLERANCE = 1e-3
"""Score differences below this fraction of the score range (or magnitude, if larger) are rounding errors."""
MARGIN = 0.02
"""Scores are equally good if they differ by at most this fraction of the score range."""
GOOD_EXAMPLES = 3
"""Number of good examples that are corrupted."""
PROVIDE_EXAMPLES = "provide good and bad examples in the `examples` of the spec, or to check_reward"


@dataclass(frozen=True)
class Corruption:
    """A corruption of images. A reward that prefers it fails the check if `is_severe`, and gets a warning otherwise."""

    name: str
    description: str
    apply: Callable[[np.ndarray], np.ndarray]
    is_severe: bool


CORRUPTIONS = (
    Corruption("blank", "a blank image", corruptions.blank, True),
    Corruption("noise", "noise", corruptions.noise, True),
    Corruption("tiling", "an image tiled with small copies", corruptions.tiled, True),
    Corruption("negative", "a negative", corruptions.inverted, False),
    Corruption("JPEG artefacts", "an image with strong JPEG artifacts", corruptions.compressed, False),
)


@dataclass(frozen=True)
class Check:
    """The result of one check; `sentence` describes it."""

    name: str
    outcome: Outcome
    sentence: str


@dataclass(frozen=True)
class Report:
    """The results of all checks of a reward."""

    reward: str
    checks: tuple[Check, ...]

    @property
    def fit(self) -> bool:
        """Whether the reward can be used for training: no check failed."""
        return not self.of("failed")

    @property
    def verdict(self) -> str:
        """The conclusion in one sentence."""
        if not self.fit:
            return f"{self.reward} is not suitable for training: {self.of('failed')[0].sentence}"
        warned = len(self.of("warned"))
        after = f" (with {warned} warning{'s' if warned > 1 else ''})" if warned else ""
        return f"{self.reward} is suitable for training{after}"

    def of(self, outcome: Outcome) -> list[Check]:
        """The checks with this outcome."""
        return [check for check in self.checks if check.outcome == outcome]

    def document(self) -> dict[str, Any]:
        """The report as plain data, for JSON."""
        checks = [asdict(check) for check in self.checks]
        return {"reward": self.reward, "fit": self.fit, "verdict": self.verdict, "checks": checks}

    def __str__(self) -> str:
        width = max((len(check.name) for check in self.checks), default=0)
        lines = [f"{check.outcome:<14}  {check.name:<{width}}  {check.sentence}" for check in self.checks]
        return "\n".join([*lines, self.verdict])


class RewardChecks:
    """The checks of one reward, in order. Later checks use the results of earlier ones.

    The reward scores the images of `examples`, or `sample_images` without examples.
    """

    def __init__(self, reward: SingleReward, examples: Sequence[RewardExample]) -> None:
        self._reward = reward
        self._examples = examples
        self._images = example_images(examples) or sample_images()
        self._scores: Scores = []
        self._deterministic = False

    def checks(self) -> Iterator[Check]:
        """Run the checks. If the first check, of the contract, fails, the others are skipped."""
        contract = _run_check("contract", self._contract)
        yield contract
        if contract.outcome == "failed":
            return
        yield _run_check("determinism", self._determinism)
        yield _run_check("order", self._order)
        yield _run_check("batch size", self._batches)
        yield _run_check("missing metadata", self._missing_metadata)
        yield _run_check("variety", self._variety)
        yield _run_check("good and bad", self._preference)
        for corruption in CORRUPTIONS:
            yield _run_check(corruption.name, partial(self._resistance, corruption))

    def _score(self, images: Sequence[ImageToScore]) -> Scores:
        return [result.score for result in self._reward(images)]

    def _contract(self) -> Finding:
        self._scores = self._score(self._images)
        scored, count = len(self._valid()), len(self._images)
        if not scored:
            return "warned", f"it scored none of {count} images, so most checks are impossible: {PROVIDE_EXAMPLES}"
        unscored = f", and None for {count - scored}" if scored < count else ""
        return "passed", f"it returned a finite number for {scored} of {count} images{unscored}"

    def _determinism(self) -> Finding:
        difference = self._difference(self._score(self._images))
        self._deterministic = difference == 0
        if self._deterministic:
            return "passed", "repeated calls return the same scores"
        size = f"by up to {difference:.3g}; the range of all scores is {self._range():.3g}"
        outcome: Outcome = "warned" if difference < self._range() / 2 else "failed"
        return outcome, f"repeated calls return different scores, {size}"

    def _order(self) -> Finding:
        return self._unchanged(lambda: self._score(self._images[::-1])[::-1], "in reverse order")

    def _batches(self) -> Finding:
        if self._reward.groupwise:
            return self._unchanged(self._group_by_group, "with one group per call")
        return self._unchanged(lambda: [self._score([one])[0] for one in self._images], "with one image per call")

    def _group_by_group(self) -> Scores:
        scores: dict[int, float | None] = {}
        for group in {image.group for image in self._images}:
            members = [i for i, image in enumerate(self._images) if image.group == group]
            scores.update(zip(members, self._score([self._images[i] for i in members]), strict=True))
        return [scores[i] for i in range(len(self._images))]

    def _unchanged(self, score: Callable[[], Scores], how: str) -> Finding:
        if not self._deterministic:
            return "not applicable", "the scores are not deterministic"
        if difference := self._difference(score()):
            return (
                "failed",
                f"scores change by up to {difference:.3g} {how}; a score must not depend on the rest of the batch",
            )
        return "passed", f"the scores are the same {how}"

    def _missing_metadata(self) -> Finding:
        try:
            scores = self._score([replace(image, metadata={}) for image in self._images])
        except Tdmr1Error as error:
            if isinstance(error.__cause__, Tdmr1Error):
                return "warned", f"without metadata it raises an error, which stops a run: {error.__cause__.message}"
            return (
                "failed",
                f"without metadata it crashes, instead of returning None or raising Tdmr1Error: {error.message}",
            )
        unscored = sum(score is None for score in scores)
        if unscored > len(self._scores) - len(self._valid()):
            return "passed", f"without metadata it returns None for {unscored} of {len(scores)} images"
        return "passed", "it works without metadata"

    def _variety(self) -> Finding:
        scores = self._valid()
        if len(scores) < 2:
            return "not applicable", "fewer than two images have a score"
        if self._range() == 0:
            return "warned", f"all {len(scores)} images have the score {scores[0]:.3g}; equal scores give no signal"
        return "passed", f"the scores range from {min(scores):.3g} to {max(scores):.3g}"

    def _preference(self) -> Finding:
        known = list(zip(self._scores, self._examples, strict=False))
        good, bad = ([score for score, example in known if example.good is kind] for kind in (True, False))
        if not good or not bad:
            return "not applicable", PROVIDE_EXAMPLES
        pairs = [(better, worse) for better in good for worse in bad if better is not None and worse is not None]
        if not pairs:
            return "failed", "it scored none of the good examples, or none of the bad examples"
        correct = sum(better > worse for better, worse in pairs)
        outcome: Outcome = "passed" if correct == len(pairs) else "warned" if correct >= 0.8 * len(pairs) else "failed"
        return outcome, f"{correct} of {len(pairs)} pairs of a good and a bad example are ranked correctly"

    def _resistance(self, corruption: Corruption) -> Finding:
        known = zip(self._images, self._examples, self._scores, strict=False)
        good = {image: score for image, example, score in known if example.good and score is not None}
        if not good:
            return "not applicable", PROVIDE_EXAMPLES
        corrupted = {image: replace(image, image=corruption.apply(image.image)) for image in list(good)[:GOOD_EXAMPLES]}
        scores = [score for score in self._score_corrupted(corrupted) if score is not None]
        if not scores:
            return "passed", f"{corruption.description} gets no score"
        highest, best, margin = max(scores), max(good.values()), MARGIN * self._range()
        numbers = f"{highest:.3g}; the best good example scores {best:.3g}"
        if highest > best + margin:
            outcome: Outcome = "failed" if corruption.is_severe else "warned"
            return outcome, f"{corruption.description} scores higher than the good examples: {numbers}"
        if highest >= best - margin:
            return "warned", f"{corruption.description} scores as high as a good example: {numbers}"
        return "passed", f"{corruption.description} scores {numbers}"

    def _score_corrupted(self, corrupted: Mapping[ImageToScore, ImageToScore]) -> Scores:
        """The scores of corrupted images by the image that each replaces, which a reward may compare with its group."""
        if not self._reward.groupwise:
            return self._score(list(corrupted.values()))
        scores = []
        for image, replacement in corrupted.items():
            others = [other for other in self._images if other.group == image.group and other is not image]
            scores.append(self._score([replacement, *others])[0])
        return scores

    def _valid(self) -> list[float]:
        return [score for score in self._scores if score is not None]

    def _range(self) -> float:
        scores = self._valid()
        return max(scores) - min(scores) if scores else 0.0

    def _difference(self, scores: Scores) -> float:
        """The largest difference from the first scores: 0 for rounding errors, infinite if only one score is None."""
        largest = 0.0
        for first, second in zip(self._scores, scores, strict=True):
            if first is not None and second is not None:
                largest = max(largest, abs(first - second))
            elif first is not second:
                return math.inf
        size = max((abs(score) for score in self._valid()), default=0.0)
        return 0.0 if largest <= TOLERANCE * max(self._range(), size) else largest


def _run_check(name: str, check: Callable[[], Finding]) -> Check:
    """The result of a check; the check fails if the reward raises an error."""
    try:
        return Check(name, *check())
    except Tdmr1Error as error:
        return Check(name, "failed", describe_error(error))


def sample_images() -> list[ImageToScore]:
    """The drawn sample images of `sources.sample_images`."""
    return [ImageToScore(sample.image, sample.prompt, {}, sample.group) for sample in draw_samples()]


def example_images(examples: Sequence[RewardExample]) -> list[ImageToScore]:
    """The images of the examples; the images of one prompt form a group. Raises Tdmr1Error for a wrong image."""
    groups: dict[str, int] = {}
    return [_example_image(example, groups.setdefault(example.prompt, len(groups))) for example in examples]


def _example_image(example: RewardExample, group: int) -> ImageToScore:
    image = np.asarray(example.image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise Tdmr1Error(
            f"the image of an example for {example.prompt!r} is a {image.dtype} array of shape {image.shape}",
            "use a PIL RGB image or a uint8 array (H, W, 3)",
            code="reward-images",
            values={"prompt": example.prompt, "dtype": str(image.dtype), "shape": list(image.shape)},
        )
    return ImageToScore(image, example.prompt, example.metadata, group)
