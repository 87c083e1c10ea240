"""The base class of reward options."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


class RewardOptions(BaseModel):
    """Base class of the options of a reward. Immutable; rejects unknown options, NaN, infinity and true as a number."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _reject_boolean(cls, value: Any, info: ValidationInfo) -> Any:
        """Reject true and false, which are also `yes` and `no` in YAML, where only a number is wanted."""
        wanted = set(_annotations_in(cls.model_fields[str(info.field_name)].annotation))
        if isinstance(value, bool) and wanted & {int, float} and not wanted & {bool, Any}:
            raise ValueError("should be a number")
        return value


def _annotations_in(annotation: Any) -> Iterator[Any]:
    """An annotation and those inside it: `tuple[int, ...] | None` contains int."""
    yield annotation
    for part in getattr(annotation, "__args__", ()):
        yield from _annotations_in(part)
