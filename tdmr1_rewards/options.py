"""A reward's options: the base class to derive from, and mistakes told all at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from tdmr1_rewards.errors import Tdmr1Error, close_match_hint


class RewardOptions(BaseModel):
    """Base of every reward's options: immutable; unknown options and numbers that are not finite are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Options = TypeVar("Options", bound=RewardOptions)


def validate_options(model: type[Options], options: Mapping[str, Any], owner: str) -> Options:
    """The validated options; or one Tdmr1Error, starting with `owner`, that names everything wrong with them."""
    try:
        return model.model_validate(dict(options))
    except ValidationError as error:
        known = list(model.model_fields)
        problems = "; ".join(_problem(item, known) for item in error.errors(include_url=False))
        hint = f"options are: {', '.join(known)}" if known else "it takes no options"
        raise Tdmr1Error(f"{owner} got wrong options: {problems}", hint) from error


def _problem(error: ErrorDetails, known: list[str]) -> str:
    """One mistake in a few words, such as "'min_area' should be greater than 0, not -1"."""
    path = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        # The known names are those of the outermost model only.
        match = f" ({close_match_hint(path, known)})" if len(error["loc"]) == 1 else ""
        return f"unknown option {path!r}{match}"
    if error["type"] == "missing":
        return f"{path!r} is required"
    said = error["msg"].removeprefix("Input ").removeprefix("Value error, ")
    return f"{path!r} {said}, not {error['input']!r}" if path else said
