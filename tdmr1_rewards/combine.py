"""Several rewards to one number an image. A None ("cannot judge") stays a None and never becomes a number."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

Scores = Sequence[float | None]


def weighted_sum(per_reward: Mapping[str, Scores], weights: Mapping[str, float]) -> list[float | None]:
    """Σ_r weight_r · score_r for each of N images; None where any reward answered None.

    `per_reward` maps each reward's name to its N scores; `weights` has the same names.
    """
    names = list(per_reward)
    columns = zip(*(per_reward[name] for name in names), strict=True)
    return [_dot(column, [weights[name] for name in names]) for column in columns]


def normalised_sum(
    per_reward: Mapping[str, Scores], weights: Mapping[str, float], group_ids: Sequence[int], eps: float = 1e-4
) -> list[float | None]:
    """Like `weighted_sum`, of (score - group mean) / (group std + eps) of each reward by itself.

    Mean and (population) std are those of a reward's own scores in the group, without its Nones. A group
    in which a reward's scores are all equal gets exactly 0 from it. `group_ids` has length N.
    """
    return weighted_sum({name: _normalised(scores, group_ids, eps) for name, scores in per_reward.items()}, weights)


def _dot(scores: Scores, weights: Sequence[float]) -> float | None:
    valid = [score for score in scores if score is not None]
    if len(valid) < len(scores):
        return None
    return math.fsum(weight * score for weight, score in zip(weights, valid, strict=True))


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
    mean = math.fsum(values) / len(values)
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
