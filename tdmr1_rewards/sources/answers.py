"""Reads scores and details from the answer of a reward of another toolkit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from tdmr1_rewards.calling.result_checks import has_no_order
from tdmr1_rewards.errors import Tdmr1Error

SCORE_NAMES = ("avg", "scores", "rewards", "score", "reward")
"""The entry of a mapping, or the attribute of an object, that has the scores; the first one counts.

"avg" is that of flow_grpo's multi_score, `rewards` that of Flow-Factory's outputs.
"""
COLUMN = "column"
"""The option that selects the score where an image has several numbers."""
UNSCORED = -10
"""The score of flow_grpo for an image that a reward does not judge."""
NOT_SCORED = f"not scored ({UNSCORED})"
"""The reason for such an image."""


def read_answer(
    answer: Any, count: int, owner: str, column: int | None = None
) -> tuple[list[Any], list[dict[str, Any]] | None]:
    """Read scores and details from the answer of a foreign reward for `count` images.

    Scores are a list, array or tensor, alone or first in a tuple, or an entry or attribute with one of `SCORE_NAMES`.
    `column` selects the score where each image has several numbers. The number of scores is not checked. Raises
    Tdmr1Error if the answer has no scores, or several for an image without a `column`.
    """
    scores, info = answer, None
    if isinstance(answer, tuple) and answer and not isinstance(answer[0], Real | None):
        scores, info = answer[0], answer[1] if len(answer) > 1 else None
    if isinstance(scores, Mapping):
        name = _score_name(list(scores), owner, f"a mapping with the keys {', '.join(map(str, scores))}")
        scores, info = scores[name], {key: values for key, values in scores.items() if key != name}
    elif _is_record(scores):
        fields = [name for name in SCORE_NAMES if hasattr(scores, name)]
        name = _score_name(fields, owner, f"an object of type {type(scores).__name__}")
        scores, info = getattr(scores, name), getattr(scores, "details", getattr(scores, "extra_info", info))
    if scores is None:
        raise Tdmr1Error(
            f"{owner} returned None instead of scores",
            "check that it returns the scores that it computes",
            code="reward-result",
            values={"reward": owner, "type": "NoneType"},
        )
    if has_no_order(scores):
        raise _no_list(scores, owner)
    return [_one_of(number_of(score), column, owner) for score in listed(scores)], _details(info, count)


def without_unscored(
    scores: list[Any], details: list[dict[str, Any]] | None
) -> tuple[list[Any], list[dict[str, Any]] | None]:
    """Replace flow_grpo's -10 by None, with the reason in the details unless they have one."""
    unscored = [score == UNSCORED for score in scores]
    if not any(unscored):
        return scores, details
    reasons = [{"reason": NOT_SCORED} if missing else {} for missing in unscored]
    details = [{**reason, **entry} for reason, entry in zip(reasons, details or [{}] * len(scores), strict=False)]
    return [None if missing else score for score, missing in zip(scores, unscored, strict=True)], details


def first_score(answer: Any, owner: str, column: int | None = None) -> Any:
    """The score of one image; it may be the first entry of a tuple, or have one of `SCORE_NAMES`."""
    is_pair = isinstance(answer, tuple) and answer
    score = number_of(answer[0] if is_pair else answer)
    if isinstance(score, Mapping) or _is_record(score):
        scores, _ = read_answer(score, 1, owner, column)
        return scores[0] if len(scores) == 1 else scores
    return _one_of(score, column, owner)


def number_of(score: Any) -> Any:
    """The only number in a tensor, array or list, as a plain number; other scores are returned unchanged."""
    if hasattr(score, "detach") or hasattr(score, "tolist") or isinstance(score, list):
        values = listed(score)
        return number_of(values[0]) if len(values) == 1 else values
    return score


def listed(values: Any) -> list[Any]:
    """A tensor, array, other sequence or single number as a list."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().float().numpy()
    if hasattr(values, "tolist"):
        values = values.tolist()
    if isinstance(values, Sequence) and not isinstance(values, str | bytes):
        return list(values)
    return [values]


def _is_record(value: Any) -> bool:
    """Whether a value is an object with named fields, not a number, a list, an array or None."""
    plain = value is None or isinstance(value, Real | str | bytes | Sequence) or has_no_order(value)
    return not plain and not hasattr(value, "__iter__") and any(hasattr(value, name) for name in SCORE_NAMES)


def _score_name(names: Sequence[Any], owner: str, what: str) -> str:
    for name in SCORE_NAMES:
        if name in names:
            return name
    raise Tdmr1Error(
        f"{owner} returned {what}, but without {SCORE_NAMES[0]!r} or another name of scores",
        f"return the scores, or one of {', '.join(map(repr, SCORE_NAMES))} with the scores",
        code="reward-result",
        values={"reward": owner, "keys": [str(name) for name in names]},
    )


def _no_list(scores: Any, owner: str) -> Tdmr1Error:
    kind = type(scores).__name__
    return Tdmr1Error(
        f"{owner} returned scores of type {kind}, not a list",
        "return a list with one score for each image, in order",
        code="reward-result",
        values={"reward": owner, "type": kind},
    )


def _one_of(score: Any, column: int | None, owner: str) -> Any:
    """The number of an image. Of several numbers it is that of the column."""
    numbers = score if isinstance(score, list | tuple) else None
    if numbers is None or not all(isinstance(number, Real) for number in numbers):
        return score
    if column is not None and 0 <= column < len(numbers):
        return numbers[column]
    found = f"{len(numbers)} numbers for an image, such as {list(numbers)!r}"
    raise Tdmr1Error(
        f"{owner} returned {found}, but a score is one number"
        if column is None
        else f"{owner} returned {found}, but its option {COLUMN} is {column}",
        f"set the option `{COLUMN}` to the position of the score, from 0: the mean of a row (mean, sigma) has 0",
        code="reward-result",
        values={"reward": owner, "found": len(numbers), "expected": 1, "column": column},
    )


def _details(info: Any, count: int) -> list[dict[str, Any]] | None:
    """Details per image, from a mapping of columns or a list of mappings; None for anything else."""
    if isinstance(info, Mapping):
        columns = {str(name): listed(values) for name, values in info.items()}
        columns = {name: values for name, values in columns.items() if len(values) == count}
        return [{name: values[i] for name, values in columns.items()} for i in range(count)] if columns else None
    if isinstance(info, list) and len(info) == count and all(isinstance(entry, Mapping) for entry in info):
        return [dict(entry) for entry in info]
    return None
