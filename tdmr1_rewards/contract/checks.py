"""The checks behind `check_reward`, one method each, and the report they make."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from tdmr1_rewards.api import RewardExample
from tdmr1_rewards.contract import corruptions
from tdmr1_rewards.errors import Tdmr1Error, describe_error
from tdmr1_rewards.scoring.single_reward import ImageToScore, SingleReward

Outcome = Literal["passed", "warned", "failed", "not applicable"]
Scores = list[float | None]
Finding = tuple[Outcome, str]

PROMPTS = (
    "three red circles",
    'a shop sign that says "OPEN"',
    "a photo of a cat on a sofa",
    "a blue square left of a yellow triangle",
)
"""What pictures are asked for where there are no examples: a number, a text, an object, a relation."""
TOLERANCE = 1e-3
"""Differences below this share of the scores' spread (or of their size, if it is larger) are those of arithmetic."""
MARGIN = 0.02
"""A picture that scores within this share of the examples' spread scores as well."""
GOOD_EXAMPLES = 3
"""How many good examples are spoilt in each way."""
NAME_EXAMPLES = "name good and bad examples, in the spec's `examples` or to check_reward"


@dataclass(frozen=True)
class Cheat:
    """A way of spoiling a picture; a reward that prefers it is unfit if that `is_grave`, and else it is warned of."""

    name: str
    told: str
    spoil: Callable[[np.ndarray], np.ndarray]
    is_grave: bool


CHEATS = (
    Cheat("blank", "a blank picture", corruptions.blank, True),
    Cheat("noise", "noise", corruptions.noise, True),
    Cheat("tiling", "a tiling of small copies", corruptions.tiled, True),
    Cheat("negative", "a negative", corruptions.inverted, False),
    Cheat("JPEG artefacts", "a picture full of JPEG artefacts", corruptions.compressed, False),
)


@dataclass(frozen=True)
class Check:
    """One thing that was looked at, and what was found in one sentence."""

    name: str
    outcome: Outcome
    sentence: str


@dataclass(frozen=True)
class Report:
    """Every check of a reward; `fit` is whether to train with it."""

    reward: str
    checks: tuple[Check, ...]

    @property
    def fit(self) -> bool:
        """Whether no check failed."""
        return not self.of("failed")

    @property
    def verdict(self) -> str:
        """All of it in one sentence."""
        if not self.fit:
            return f"{self.reward} is not fit to train with: {self.of('failed')[0].sentence}"
        warned = len(self.of("warned"))
        after = f" (with {warned} warning{'s' if warned > 1 else ''})" if warned else ""
        return f"{self.reward} is fit to train with{after}"

    def of(self, outcome: Outcome) -> list[Check]:
        """The checks that ended like this."""
        return [check for check in self.checks if check.outcome == outcome]

    def document(self) -> dict[str, Any]:
        """As plain data."""
        checks = [asdict(check) for check in self.checks]
        return {"reward": self.reward, "fit": self.fit, "verdict": self.verdict, "checks": checks}

    def __str__(self) -> str:
        width = max((len(check.name) for check in self.checks), default=0)
        lines = [f"{check.outcome:<14}  {check.name:<{width}}  {check.sentence}" for check in self.checks]
        return "\n".join([*lines, self.verdict])


class RewardChecks:
    """The checks of one reward, in order; later ones rely on what earlier ones found.

    What is judged are the pictures of the examples, or `sample_images` where there are none.
    """

    def __init__(self, judge: SingleReward, examples: Sequence[RewardExample], *, groupwise: bool) -> None:
        self._judge = judge
        self._examples = examples
        self._groupwise = groupwise
        self._pictures = example_images(examples) or sample_images()
        self._scores: Scores = []
        self._steady = False

    def checks(self) -> Iterator[Check]:
        """Every check; only the first one if the contract is not kept."""
        contract = _look("contract", self._contract)
        yield contract
        if contract.outcome == "failed":
            return
        yield _look("determinism", self._determinism)
        yield _look("order", self._order)
        yield _look("batch size", self._batches)
        yield _look("missing metadata", self._missing_metadata)
        yield _look("variety", self._variety)
        yield _look("good and bad", self._preference)
        for cheat in CHEATS:
            yield _look(cheat.name, partial(self._resistance, cheat))

    def _ask(self, pictures: Sequence[ImageToScore]) -> Scores:
        return [verdict.score for verdict in self._judge(pictures)]

    def _contract(self) -> Finding:
        self._scores = self._ask(self._pictures)
        judged, count = len(self._judged()), len(self._pictures)
        if not judged:
            return "warned", f"it judged none of {count} pictures, so there is little to check: {NAME_EXAMPLES}"
        unjudged = f", and None for {count - judged}" if judged < count else ""
        return "passed", f"it answered a finite number for {judged} of {count} pictures{unjudged}"

    def _determinism(self) -> Finding:
        difference = self._difference(self._ask(self._pictures))
        self._steady = difference == 0
        if self._steady:
            return "passed", "the same pictures got the same scores again"
        size = f"by up to {difference:.3g}, where their spread is {self._spread():.3g}"
        outcome: Outcome = "warned" if difference < self._spread() / 2 else "failed"
        return outcome, f"the same pictures got other scores again, {size}"

    def _order(self) -> Finding:
        return self._unchanged(lambda: self._ask(self._pictures[::-1])[::-1], "in reverse order")

    def _batches(self) -> Finding:
        if self._groupwise:
            return self._unchanged(self._group_by_group, "with each group in a call of its own")
        return self._unchanged(lambda: [self._ask([one])[0] for one in self._pictures], "with one picture a call")

    def _group_by_group(self) -> Scores:
        scores: dict[int, float | None] = {}
        for group in {picture.group for picture in self._pictures}:
            members = [i for i, picture in enumerate(self._pictures) if picture.group == group]
            scores.update(zip(members, self._ask([self._pictures[i] for i in members]), strict=True))
        return [scores[i] for i in range(len(self._pictures))]

    def _unchanged(self, ask: Callable[[], Scores], how: str) -> Finding:
        if not self._steady:
            return "not applicable", "its scores change by themselves"
        if difference := self._difference(ask()):
            return "failed", f"scores change by up to {difference:.3g} {how}: they must not depend on neighbours"
        return "passed", f"the scores are the same {how}"

    def _missing_metadata(self) -> Finding:
        try:
            scores = self._ask([replace(picture, metadata={}) for picture in self._pictures])
        except Tdmr1Error as error:
            if isinstance(error.__cause__, Tdmr1Error):
                return "warned", f"without metadata it stops the run: {error.__cause__.message}"
            return "failed", f"without metadata it breaks, where it should answer None or say why: {error.message}"
        unjudged = sum(score is None for score in scores)
        if unjudged > len(self._scores) - len(self._judged()):
            return "passed", f"without metadata it answers None for {unjudged} of {len(scores)} pictures"
        return "passed", "it gets by without metadata"

    def _variety(self) -> Finding:
        judged = self._judged()
        if len(judged) < 2:
            return "not applicable", "fewer than two pictures were judged"
        if self._spread() == 0:
            return "warned", f"all {len(judged)} pictures got {judged[0]:.3g}: equal scores teach nothing"
        return "passed", f"the scores reach from {min(judged):.3g} to {max(judged):.3g}"

    def _preference(self) -> Finding:
        known = list(zip(self._scores, self._examples, strict=False))
        good, bad = ([score for score, example in known if example.good is kind] for kind in (True, False))
        if not good or not bad:
            return "not applicable", NAME_EXAMPLES
        pairs = [(better, worse) for better in good for worse in bad if better is not None and worse is not None]
        if not pairs:
            return "failed", "it judged none of the good examples, or none of the bad ones"
        right = sum(better > worse for better, worse in pairs)
        outcome: Outcome = "passed" if right == len(pairs) else "warned" if right >= 0.8 * len(pairs) else "failed"
        return outcome, f"{right} of {len(pairs)} pairs of a good and a bad example are ranked right"

    def _resistance(self, cheat: Cheat) -> Finding:
        known = zip(self._pictures, self._examples, self._scores, strict=False)
        good = {picture: score for picture, example, score in known if example.good and score is not None}
        if not good:
            return "not applicable", NAME_EXAMPLES
        spoilt = [replace(picture, image=cheat.spoil(picture.image)) for picture in list(good)[:GOOD_EXAMPLES]]
        judged = [score for score in self._ask(spoilt) if score is not None]
        if not judged:
            return "passed", f"{cheat.told} is not judged"
        highest, best, margin = max(judged), max(good.values()), MARGIN * self._spread()
        numbers = f"{highest:.3g}, and the best good picture {best:.3g}"
        if highest > best + margin:
            return "failed" if cheat.is_grave else "warned", f"{cheat.told} scores higher than a good one: {numbers}"
        if highest >= best - margin:
            return "warned", f"{cheat.told} scores as well as a good one: {numbers}"
        return "passed", f"{cheat.told} scores {numbers}"

    def _judged(self) -> list[float]:
        return [score for score in self._scores if score is not None]

    def _spread(self) -> float:
        judged = self._judged()
        return max(judged) - min(judged) if judged else 0.0

    def _difference(self, scores: Scores) -> float:
        """The largest difference from the first answers; 0 for one of arithmetic, infinite where only one is None."""
        largest = 0.0
        for first, second in zip(self._scores, scores, strict=True):
            if first is not None and second is not None:
                largest = max(largest, abs(first - second))
            elif first is not second:
                return math.inf
        size = max((abs(score) for score in self._judged()), default=0.0)
        return 0.0 if largest <= TOLERANCE * max(self._spread(), size) else largest


def _look(name: str, examine: Callable[[], Finding]) -> Check:
    """What a check finds; a reward that raises has failed it."""
    try:
        return Check(name, *examine())
    except Tdmr1Error as error:
        return Check(name, "failed", describe_error(error))


def sample_images() -> list[ImageToScore]:
    """Eight drawn pictures of 96 x 96 pixels, two for each of PROMPTS, the same each time."""
    from PIL import Image, ImageDraw

    rng = np.random.default_rng(0)
    pictures = []
    for group, prompt in enumerate(PROMPTS):
        for _ in range(2):
            image = Image.new("RGB", (96, 96), tuple(int(value) for value in rng.integers(100, 200, 3)))
            draw = ImageDraw.Draw(image)
            for _ in range(int(rng.integers(2, 6))):
                left, top = (int(value) for value in rng.integers(0, 70, 2))
                colour = tuple(int(value) for value in rng.integers(0, 256, 3))
                shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
                shape((left, top, left + 20, top + 20), fill=colour)
            draw.text((8, 80), "OPEN" if group == 1 else "", fill="black")
            pictures.append(ImageToScore(np.asarray(image), prompt, {}, group))
    return pictures


def example_images(examples: Sequence[RewardExample]) -> list[ImageToScore]:
    """The pictures of examples; those of one prompt are a group. Raises Tdmr1Error for what is no picture."""
    groups: dict[str, int] = {}
    return [_picture(example, groups.setdefault(example.prompt, len(groups))) for example in examples]


def _picture(example: RewardExample, group: int) -> ImageToScore:
    image = np.asarray(example.image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise Tdmr1Error(
            f"an example for {example.prompt!r} is {image.dtype} {image.shape}",
            "an example's image is a PIL RGB image or a uint8 array (H, W, 3)",
        )
    return ImageToScore(image, example.prompt, example.metadata, group)
