"""Comparing two evaluations that used the same prompts and noises."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tdmr1_core.runs.evaluation.evaluate import Evaluation, Measure


def gain(after: Evaluation, before: Evaluation, reward: str) -> Measure:
    """How much more a reward gives, image by image: mean, standard error and number of the paired differences."""
    from tdmr1_core.runs.evaluation.evaluate import measure

    pairs = zip(after.scores[reward], before.scores[reward], strict=True)
    return measure([None if now is None or then is None else now - then for now, then in pairs])
