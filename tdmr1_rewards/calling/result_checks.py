"""Checks what a reward returns; the checks are the same wherever it ran. Standard library only."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, MappingView, Sequence, Set
from numbers import Real
from typing import Any

from tdmr1_rewards.api import RewardResult
from tdmr1_rewards.calling.user_code import attached_hint, describe_raised
from tdmr1_rewards.errors import UNSPECIFIED, Tdmr1Error, one_line

USED_METRICS = ("mean", "std", "unjudged", "failed")
"""Metrics that a run has for every reward, as `reward/<name>/mean`."""


LARGEST_SCORE = 1e100
"""Largest absolute value of a score or metric: sums of squares of such numbers do not overflow."""
RANGE = f"{-LARGEST_SCORE:g} to {LARGEST_SCORE:g}"


class CallFailed(Exception):
    """A call to a reward failed. `reason` continues a sentence after the reward's name: "raised OSError: no file".

    `hint`, `code` and `values` are as in Tdmr1Error.
    """

    def __init__(
        self,
        reason: str,
        hint: str | None = None,
        *,
        code: str = "reward-failed",
        values: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint
        self.code = code
        self.values = dict(values or {})


def as_call_failure(error: BaseException, what: str | None = None) -> CallFailed:
    """Convert an exception of a reward to a CallFailed. `what` names the step that failed ("cannot be set up").

    A Tdmr1Error keeps its code and values. For another exception, the reason and the values have the file and line of
    the reward's code, and the hint is that of `attach_hint`.
    """
    if isinstance(error, CallFailed):
        return error
    if isinstance(error, Tdmr1Error):
        code = "reward-failed" if error.code == UNSPECIFIED else error.code
        reason = f"{what or 'failed'}: {one_line(error.message)}"
        failure = CallFailed(reason, error.hint, code=code, values=error.values)
    else:
        found, hint, fallback = describe_raised(error), attached_hint(error), "raised"
        if not isinstance(error, Exception):
            hint = "raise an ordinary exception, or return None for an image that the reward cannot judge"
            fallback = "tried to end the program:"
        failure = CallFailed(f"{what + ':' if what else fallback} {found}", hint, values=found.values)
    failure.__cause__ = error
    return failure


def check_result(result: Any, image_ids: Sequence[int]) -> RewardResult:
    """The result with one float or None and one mapping (empty if there are no details) for each image.

    Raises CallFailed for another type, a wrong number of scores or details, a score that is not finite or beyond
    LARGEST_SCORE, and metrics in the details that are not such numbers by name.
    """
    if not isinstance(result, RewardResult):
        raise _invalid(
            f"returned a {type(result).__name__} instead of a RewardResult",
            "return RewardResult(scores=[...])",
            type=type(result).__name__,
        )
    count = len(image_ids)
    scores = _sized("scores", result.scores, count)
    details = [None] * count if result.details is None else _sized("details", result.details, count)
    for image_id, mapping in zip(image_ids, details, strict=True):
        if not isinstance(mapping, Mapping | None):
            kind = type(mapping).__name__
            raise _invalid(
                f"returned a {kind} as details of image {image_id}, not a mapping", image_id=image_id, type=kind
            )
        _check_metrics((mapping or {}).get("metrics", {}), image_id)
    return RewardResult(
        [_number(score, i) for score, i in zip(scores, image_ids, strict=True)], [mapping or {} for mapping in details]
    )


def _check_metrics(metrics: Any, image_id: int) -> None:
    """Raise CallFailed unless metrics are a mapping of free names to finite numbers."""
    if not isinstance(metrics, Mapping):
        kind = type(metrics).__name__
        hint = 'write {"metrics": {"name": 0.5}}'
        raise _invalid(f"returned a {kind} as metrics of image {image_id}", hint, image_id=image_id, type=kind)
    for name, value in metrics.items():
        if not isinstance(name, str) or name in USED_METRICS:
            hint = f"a name is a string other than {', '.join(USED_METRICS)}, which the run uses"
            raise _invalid(
                f"returned the metric {name!r} for image {image_id}", hint, image_id=image_id, metric=str(name)
            )
        if not _is_in_range(value):
            shown = reprlib.repr(value)
            raise _invalid(
                f"returned {shown} as the metric {name!r} of image {image_id}",
                f"a metric is a finite number from {RANGE}; omit it for an image that has none",
                image_id=image_id,
                metric=name,
                value=shown,
            )


def _invalid(reason: str, hint: str | None = None, **values: Any) -> CallFailed:
    return CallFailed(reason, hint, code="reward-result", values=values)


def _sized(field: str, values: Any, count: int) -> list[Any]:
    """The values as a list of length `count`."""
    try:
        listed = None if has_no_order(values) else list(as_numbers(values))
    except TypeError:
        listed = None
    except Exception as error:  # of a generator
        raise as_call_failure(error) from error
    if listed is None:
        kind = type(values).__name__
        hint = f"return a list with one entry for each image, in order: {field}=[...]"
        raise _invalid(f"returned {field} of type {kind}, not a list", hint, field=field, type=kind)
    if len(listed) != count:
        raise _invalid(
            f"returned {len(listed)} {field} for {count} images",
            "return one for each image, in order; the score None means that the reward cannot judge the image",
            field=field,
            found=len(listed),
            expected=count,
        )
    return listed


def has_no_order(values: Any) -> bool:
    """Whether values are text, or of a type whose order is not that of the images: a set, or like a dict.

    A column of a table has keys and an order; its `tolist` distinguishes it from a whole table.
    """
    is_table = hasattr(values, "keys") and not hasattr(values, "tolist")
    return is_table or isinstance(values, str | bytes | Mapping | Set | MappingView)


def as_numbers(values: Any) -> Any:
    """The plain numbers of a torch tensor, on any device; other values are returned unchanged."""
    return values.tolist() if hasattr(values, "detach") else values


def _is_in_range(value: Any) -> bool:
    """Whether a value is a number of at most LARGEST_SCORE in size; NaN is not."""
    # numpy's bool is its only scalar number type that is not registered as Real.
    is_number = isinstance(value, Real) or type(value).__name__ in ("bool", "bool_")
    return is_number and bool(abs(value) <= LARGEST_SCORE)


def _number(score: Any, image_id: int) -> float | None:
    score = as_numbers(score)
    if score is None:
        return None
    if _is_in_range(score):
        return float(score)
    raise _invalid(
        f"returned {reprlib.repr(score)}, a {type(score).__name__}, for image {image_id}",
        f"a score is a finite number from {RANGE}, or None for an image that the reward cannot judge",
        image_id=image_id,
        score=reprlib.repr(score),
        type=type(score).__name__,
    )
