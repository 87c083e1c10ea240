"""Finds out which image format a function takes that does not declare one, from its scores of sample images.

The function scores the same images in every format. The format is known if only one works, or does not matter if all
that work give the same scores. Otherwise nothing decides, and the user must: a format is never guessed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from tdmr1_rewards.api import RewardBatch, RewardContext
from tdmr1_rewards.errors import Tdmr1Error, describe_error
from tdmr1_rewards.sources.image_formats import ImageForm, in_words
from tdmr1_rewards.sources.sample_images import draw_samples

TOLERANCE = 1e-3
"""Differences below this fraction of the largest score are rounding errors."""
SET_IT = (
    "set the option `image_format` to tensor, pil or array (on the command line `--option image_format=pil`, in a "
    "config `rewards.N.options.image_format`), or annotate the parameter, such as `images: list[Image.Image]`"
)


@dataclass(frozen=True)
class Outcome:
    """The scores of the sample images in one format, or the error that the function raised."""

    scores: list[float | None]
    error: str = ""
    exception: Exception | None = None

    @property
    def works(self) -> bool:
        """Whether the function returned a score or None for each image."""
        return not self.error

    def __str__(self) -> str:
        return self.error or f"returns {', '.join('None' if s is None else f'{s:.4g}' for s in self.scores[:3])} …"


def choose_form(
    score: Callable[[RewardBatch, ImageForm], Sequence[Any]], forms: Sequence[ImageForm], owner: str
) -> tuple[ImageForm, str]:
    """The format of `forms` in which to call `score`, and the reason, as the end of a sentence.

    Raises Tdmr1Error, with the scores in each format, if formats that work give different scores, or if none works.
    """
    samples = draw_samples()
    batch = RewardBatch(
        images=[sample.image for sample in samples],
        prompts=[sample.prompt for sample in samples],
        metadata=[{} for _ in samples],
        group_ids=[sample.group for sample in samples],
        image_ids=list(range(len(samples))),
        context=RewardContext(None, 0, 0),
    )
    outcomes = {form: _outcome(score, batch, form) for form in forms}
    working = [form for form in forms if outcomes[form].works]
    if not working:
        refusal = _undecided(owner, outcomes, "it fails with sample images in every format")
        raise refusal from next(iter(outcomes.values())).exception
    first = outcomes[working[0]]
    if len(working) == 1:
        return working[0], "the only format that works with sample images"
    if not _same(first.scores, _outcome(score, batch, working[0]).scores):
        raise _undecided(owner, outcomes, "its scores change from call to call, so formats cannot be compared")
    if not all(_same(first.scores, outcomes[form].scores) for form in working[1:]):
        raise _undecided(owner, outcomes, "the formats give different scores")
    if len(set(first.scores)) == 1:
        return working[0], f"all sample images score {first.scores[0]} in {_listed(working)}; check that this is right"
    return working[0], f"sample images have the same scores in {_listed(working)}"


def _outcome(score: Callable[[RewardBatch, ImageForm], Sequence[Any]], batch: RewardBatch, form: ImageForm) -> Outcome:
    try:
        scores = list(score(batch, form))
    except Exception as error:
        return Outcome([], f"raises {describe_error(error)}", error)
    if len(scores) != len(batch):
        return Outcome([], f"returns {len(scores)} scores for {len(batch)} images")
    wrong = [one for one in scores if not (one is None or (isinstance(one, Real) and math.isfinite(one)))]
    if wrong:
        return Outcome([], f"returns {wrong[0]!r} as a score")
    return Outcome([None if one is None else float(one) for one in scores])


def _same(first: Sequence[float | None], second: Sequence[float | None]) -> bool:
    """Whether scores are equal, apart from rounding errors."""
    if [score is None for score in first] != [score is None for score in second]:
        return False
    limit = TOLERANCE * max((abs(score) for score in first if score is not None), default=0.0)
    pairs = zip(first, second, strict=True)
    return all(a is None or b is None or abs(a - b) <= limit for a, b in pairs)


def _listed(forms: Sequence[ImageForm]) -> str:
    return f"{', '.join(forms[:-1])} and {forms[-1]}"


def _undecided(owner: str, outcomes: Mapping[ImageForm, Outcome], why: str) -> Tdmr1Error:
    texts = {str(outcome) for outcome in outcomes.values()}
    each = [f"with {in_words(form)} it {outcome}" for form, outcome in outcomes.items()]
    found = f"it {texts.pop()}" if len(texts) == 1 else "; ".join(each)
    return Tdmr1Error(
        f"its image format is not declared, and a test cannot decide it, because {why}: {found}",
        SET_IT,
        code="reward-images",
        values={"reward": owner, "outcomes": {form: str(outcome) for form, outcome in outcomes.items()}},
    )
