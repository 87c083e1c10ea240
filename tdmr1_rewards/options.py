"""The base class of reward options, and their validation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from tdmr1_rewards.errors import Tdmr1Error, close_match_hint


class RewardOptions(BaseModel):
    """Base class of the options of a reward. Immutable; rejects unknown options, NaN and infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Options = TypeVar("Options", bound=RewardOptions)


def validate_options(model: type[Options], options: Mapping[str, Any], owner: object) -> Options:
    """Validate options. Raises one Tdmr1Error, which starts with `owner`, for all wrong options."""
    try:
        return model.model_validate(dict(options))
    except ValidationError as error:
        known = list(model.model_fields)
        mistakes = error.errors(include_url=False)
        problems = [_problem(item, known) for item in mistakes]
        raise Tdmr1Error(
            f"{owner} got wrong options: {'; '.join(problems)}",
            f"options are: {', '.join(known)}" if known else "it takes no options",
            code="reward-options",
            values={"reward": str(owner), "options": [_path(item) for item in mistakes], "problems": problems},
        ) from error


def _problem(error: ErrorDetails, known: list[str]) -> str:
    """Describe one mistake, such as "'min_area' should be greater than 0, not -1"."""
    path = _path(error)
    if error["type"] == "extra_forbidden":
        # `known` has the names of the outermost model only.
        match = f" ({close_match_hint(path, known)})" if len(error["loc"]) == 1 else ""
        return f"unknown option {path!r}{match}"
    if error["type"] == "missing":
        return f"{path!r} is required"
    problem = error["msg"].removeprefix("Input ").removeprefix("Value error, ")
    return f"{path!r} {problem}, not {error['input']!r}" if path else problem


def _path(error: ErrorDetails) -> str:
    return ".".join(map(str, error["loc"]))
