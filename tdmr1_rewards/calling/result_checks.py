"""What a reward answered, if it is one: the same is asked of it wherever it ran. Standard library only."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from numbers import Real
from typing import Any

from tdmr1_rewards.api import RewardResult
from tdmr1_rewards.errors import Tdmr1Error, describe_error, one_line


class CallFailed(Exception):
    """A call to a reward came to nothing: `said` goes on after the reward's name, such as "raised OSError: no file"."""

    def __init__(self, said: str, hint: str | None = None) -> None:
        super().__init__(said)
        self.reason = said
        self.hint = hint


def as_call_failure(error: BaseException, what: str | None = None) -> CallFailed:
    """An exception that came out of a reward as the failure of its call, or of `what` ("could not be set up")."""
    if isinstance(error, CallFailed):
        return error
    if isinstance(error, Tdmr1Error):
        failure = CallFailed(f"{what or 'failed'}: {one_line(error.message)}", error.hint)
    elif isinstance(error, Exception):
        failure = CallFailed(f"{what + ':' if what else 'raised'} {describe_error(error)}")
    else:
        failure = CallFailed(
            f"{what + ':' if what else 'tried to end the program:'} {describe_error(error)}",
            "a reward that cannot judge raises an ordinary exception, or answers None",
        )
    failure.__cause__ = error
    return failure


def checked(result: Any, image_ids: Sequence[int]) -> RewardResult:
    """The result with a float or None, and a mapping (empty where none was given), for each of the images.

    Raises CallFailed for anything else: another type, another number of answers, or a score that is not finite.
    """
    if not isinstance(result, RewardResult):
        raise CallFailed(
            f"answered a {type(result).__name__} instead of a RewardResult", "return RewardResult(scores=[...])"
        )
    count = len(image_ids)
    scores = _sized("scores", result.scores, count)
    details = [None] * count if result.details is None else _sized("details", result.details, count)
    for image_id, mapping in zip(image_ids, details, strict=True):
        if not isinstance(mapping, Mapping | None):
            raise CallFailed(f"gave a {type(mapping).__name__} as details of image {image_id}, not a mapping")
    return RewardResult(
        [_number(score, i) for score, i in zip(scores, image_ids, strict=True)], [mapping or {} for mapping in details]
    )


def _sized(field: str, values: Any, count: int) -> list[Any]:
    if isinstance(values, str | bytes | Mapping):
        raise CallFailed(f"answered {field} of type {type(values).__name__}, not a list")
    try:
        listed = list(values)
    except TypeError:
        raise CallFailed(f"answered {field} of type {type(values).__name__}, not a list") from None
    if len(listed) != count:
        raise CallFailed(
            f"answered {len(listed)} {field} for {count} images",
            "answer one for each image, in order; None is a score it cannot give",
        )
    return listed


def _number(score: Any, image_id: int) -> float | None:
    if score is None:
        return None
    # numpy's bool is the one number of numpy's that does not call itself Real.
    if isinstance(score, Real) or type(score).__name__ in ("bool", "bool_"):
        with suppress(OverflowError):
            value = float(score)
            if math.isfinite(value):
                return value
    raise CallFailed(
        f"answered {reprlib.repr(score)}, a {type(score).__name__}, for image {image_id}",
        "a score is a finite number, or None for an image that the reward cannot judge",
    )
