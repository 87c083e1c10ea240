"""Combines the scores of several rewards to one total per image. A None ("cannot judge") never becomes a number.

The metadata of a prompt may name the rewards that apply to its images: `"rewards": ["ocr_match"]`. The other rewards do
not score these images and are not part of their total. Without this key every reward applies.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tdmr1_rewards.calling.wire import plain
from tdmr1_rewards.errors import Tdmr1Error
from tdmr1_rewards.scoring.failures import RewardFailed

Scores = Sequence[float | None]
Applies = Mapping[str, Sequence[bool]]

REWARDS_KEY = "rewards"
"""The metadata key that names the rewards which apply to the images of a prompt."""
TEXT_TABLES = (".csv", ".tsv")
"""Suffixes of prompt files whose metadata are text."""


def applicability(metadata: Sequence[Mapping[str, Any]], names: Iterable[str]) -> dict[str, list[bool]]:
    """For each reward of `names`, N flags: whether it applies to each of the N images with this metadata.

    A prompt may also name rewards that the run does not use. Raises Tdmr1Error if "rewards" is not a list of names.
    """
    named = [named_rewards(entry) for entry in metadata]
    return {name: [rewards is None or name in rewards for rewards in named] for name in names}


def weighted_sum(
    per_reward: Mapping[str, Scores],
    weights: Mapping[str, float],
    applies: Applies | None = None,
    image_ids: Sequence[int] | None = None,
) -> list[float | None]:
    """The total of each of N images: Σ_r weight_r · score_r over the rewards that apply to it.

    It is None if no reward applies, or if the score of one that applies is None. `per_reward` maps reward names to N
    scores; `weights` and `applies` have the same keys. Without `applies`, all rewards apply. Raises RewardFailed if a
    total is not finite; it names the image by its entry in `image_ids` (by default its index).
    """
    names = list(per_reward)
    columns = list(zip(*(per_reward[name] for name in names), strict=True))
    ids = range(len(columns)) if image_ids is None else image_ids
    if applies is None:
        masks = [(True,) * len(names)] * len(columns)
    else:
        masks = list(zip(*(applies[name] for name in names), strict=True))
    totals = []
    for image, column, mask in zip(ids, columns, masks, strict=True):
        scores = {name: score for name, score, on in zip(names, column, mask, strict=True) if on}
        totals.append(_total(image, scores, weights))
    return totals


def normalised_sum(
    per_reward: Mapping[str, Scores],
    weights: Mapping[str, float],
    group_ids: Sequence[int],
    eps: float = 1e-4,
    applies: Applies | None = None,
    image_ids: Sequence[int] | None = None,
) -> list[float | None]:
    """Like `weighted_sum`, but each score is first normalized: (score - group mean) / (group std + eps).

    Mean and population std are computed per reward and group, over the images that the reward applies to and whose
    score is not None. If these scores are all equal, the normalized scores are exactly 0. `group_ids` has length N.
    """
    normalised = {}
    for name, scores in per_reward.items():
        applicable = scores if applies is None else _masked(scores, applies[name])
        normalised[name] = _normalised(applicable, group_ids, eps)
    return weighted_sum(normalised, weights, applies, image_ids)


def named_rewards(metadata: Mapping[str, Any], file: Path | None = None, place: str = "") -> Sequence[str] | None:
    """The rewards that the metadata of a prompt names; None if it has no such key.

    `file` and `place` say where the prompt is. Raises Tdmr1Error if "rewards" is not a list of names.
    """
    named = metadata.get(REWARDS_KEY)
    if named is None:
        return None
    if not isinstance(named, list | tuple) or not all(isinstance(name, str) for name in named):
        where = f"{place} of {file}" if file else "the metadata of a prompt"
        hint = f'write it like "{REWARDS_KEY}": ["object_count"], or remove it'
        if file and file.suffix.lower() in TEXT_TABLES:
            hint += f"; a cell of {file.suffix} is always text, so save the prompts as .jsonl"
        raise Tdmr1Error(
            f"{where} has {REWARDS_KEY!r}: {named!r}, but it must be a list of reward names",
            hint,
            code="reward-metadata",
            values={"key": REWARDS_KEY, "found": plain(named)} | ({"path": str(file), "place": place} if file else {}),
        )
    return named


def _masked(scores: Scores, mask: Sequence[bool]) -> list[float | None]:
    return [score if on else None for score, on in zip(scores, mask, strict=True)]


def _total(image: int, scores: Mapping[str, float | None], weights: Mapping[str, float]) -> float | None:
    """The total of one image from the scores of the rewards that apply to it."""
    valid = {name: score for name, score in scores.items() if score is not None}
    if not scores or len(valid) < len(scores):
        return None
    total = _sum(weights[name] * score for name, score in valid.items())
    if not math.isfinite(total):
        terms = " + ".join(f"{weights[name]:g} × {score:g} ({name})" for name, score in valid.items())
        raise RewardFailed(
            f"the combined reward of image {image} of the batch is not finite: {terms}",
            "start a new run with lower weights",
            code="reward-combined",
            values={"image": image, "rewards": list(valid), "terms": terms},
        )
    return total


def _sum(values: Iterable[float]) -> float:
    """The exactly rounded sum; NaN if it overflows or is undefined."""
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):
        return math.nan


def _normalised(scores: Scores, group_ids: Sequence[int], eps: float) -> list[float | None]:
    groups: dict[int, list[float]] = {}
    for score, group in zip(scores, group_ids, strict=True):
        if score is not None:
            groups.setdefault(group, []).append(score)
    moments = {group: _mean_and_std(valid) for group, valid in groups.items()}
    normalised: list[float | None] = []
    for score, group in zip(scores, group_ids, strict=True):
        if score is None:
            normalised.append(None)
        else:
            mean, std = moments[group]
            normalised.append((score - mean) / (std + eps) if std else 0.0)
    return normalised


def _mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    # The mean of equal values is rounded, so their differences from it would be noise instead of 0.
    if min(values) == max(values):
        return values[0], 0.0
    mean = _sum(values) / len(values)
    return mean, math.hypot(*(value - mean for value in values)) / math.sqrt(len(values))
