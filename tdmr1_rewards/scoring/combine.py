"""Several rewards to one number an image. A None ("cannot judge") stays a None and never becomes a number.

A prompt's metadata may name the rewards that its images are for: `"rewards": ["ocr_match"]`. The others do not apply
to them: they are not asked, and have no part in the total. Without the key every reward applies.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tdmr1_rewards.errors import Tdmr1Error
from tdmr1_rewards.scoring.failures import RewardFailed

Scores = Sequence[float | None]
Applies = Mapping[str, Sequence[bool]]

REWARDS_KEY = "rewards"
"""The key of a prompt's metadata that names the rewards which apply to its images."""


def applicability(metadata: Sequence[Mapping[str, Any]], names: Iterable[str]) -> dict[str, list[bool]]:
    """For each reward of `names`, whether it applies to each of the N images with this metadata.

    A prompt may also name rewards that are not in use. Raises Tdmr1Error for a "rewards" that is no list of names.
    """
    wanted = [_wanted(entry) for entry in metadata]
    return {name: [chosen is None or name in chosen for chosen in wanted] for name in names}


def weighted_sum(
    per_reward: Mapping[str, Scores], weights: Mapping[str, float], applies: Applies | None = None
) -> list[float | None]:
    """Σ_r weight_r · score_r over the rewards that apply to each of N images.

    None where a reward that applies answered None, and where none applies. `per_reward` maps each reward's name to its
    N scores; `weights` and `applies` (all of them if left out) have the same names. Raises Tdmr1Error for a sum that is
    not finite.
    """
    names = list(per_reward)
    columns = zip(*(per_reward[name] for name in names), strict=True)
    factors = [weights[name] for name in names]
    if applies is None:
        return [_dot(column, factors) for column in columns]
    masks = zip(*(applies[name] for name in names), strict=True)
    return [
        _dot([score for score, on in zip(column, mask, strict=True) if on], _where(factors, mask))
        for column, mask in zip(columns, masks, strict=True)
    ]


def normalised_sum(
    per_reward: Mapping[str, Scores],
    weights: Mapping[str, float],
    group_ids: Sequence[int],
    eps: float = 1e-4,
    applies: Applies | None = None,
) -> list[float | None]:
    """Like `weighted_sum`, of (score - group mean) / (group std + eps) of each reward by itself.

    Mean and (population) std are those of a reward's own scores in the group, over the images that it applies to and
    judged. A group in which these are all equal gets exactly 0 from it. `group_ids` has length N.
    """
    normalised = {}
    for name, scores in per_reward.items():
        counted = scores if applies is None else _masked(scores, applies[name])
        normalised[name] = _normalised(counted, group_ids, eps)
    return weighted_sum(normalised, weights, applies)


def _wanted(metadata: Mapping[str, Any]) -> Sequence[str] | None:
    """The rewards that a prompt names, None where it leaves it open."""
    named = metadata.get(REWARDS_KEY)
    if named is None:
        return None
    if not isinstance(named, list | tuple) or not all(isinstance(name, str) for name in named):
        raise Tdmr1Error(
            f"the metadata of a prompt has {REWARDS_KEY!r}: {named!r}, which is no list of reward names",
            f'write it like "{REWARDS_KEY}": ["object_count"], or leave it out',
        )
    return named


def _masked(scores: Scores, mask: Sequence[bool]) -> list[float | None]:
    return [score if on else None for score, on in zip(scores, mask, strict=True)]


def _where(values: Sequence[float], mask: Sequence[bool]) -> list[float]:
    return [value for value, on in zip(values, mask, strict=True) if on]


def _dot(scores: Scores, weights: Sequence[float]) -> float | None:
    valid = [score for score in scores if score is not None]
    if not scores or len(valid) < len(scores):
        return None
    total = _sum(weight * score for weight, score in zip(weights, valid, strict=True))
    if not math.isfinite(total):
        terms = " + ".join(f"{weight:g} × {score:g}" for weight, score in zip(weights, valid, strict=True))
        raise RewardFailed(
            f"the combined reward of an image is not finite: {terms}", "begin a new run with lower weights"
        )
    return total


def _sum(values: Iterable[float]) -> float:
    """The exactly rounded sum; nan where no number can hold it."""
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
    # A rounded mean of equal values would leave noise where there is nothing to learn.
    if min(values) == max(values):
        return values[0], 0.0
    mean = _sum(values) / len(values)
    return mean, math.hypot(*(value - mean for value in values)) / math.sqrt(len(values))
