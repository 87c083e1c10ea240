"""The base class of reward options."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class RewardOptions(BaseModel):
    """Base class of the options of a reward. Immutable; rejects unknown options, NaN and infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
