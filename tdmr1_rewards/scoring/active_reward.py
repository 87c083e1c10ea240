"""A reward of a run, with the settings of its calls."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tdmr1_rewards.api import Reward, RewardSpec
from tdmr1_rewards.calling.reference import Reference
from tdmr1_rewards.registry import Provenance

OnFailure = Literal["stop", "skip"]


@dataclass(frozen=True)
class ActiveReward:
    """A reward with its settings. `name` is its name in reports, `weight` its factor in the total score.

    `reward` is a Reward, or a Reference: then the reward is built in another process, with the interpreter `python` or
    this one. `batch_size` and `timeout` ("none" is no limit) override the spec, `device` overrides that of the runner.
    A failed call is repeated up to `retries` times. Then `on_failure` decides: the run stops, or the images of the call
    have no score. `in_run` is whether a run uses the reward, so that its settings can be changed.
    """

    name: str
    weight: float
    spec: RewardSpec
    reward: Reward | Reference
    provenance: Provenance
    batch_size: int | None = None
    timeout: float | Literal["none"] | None = None
    retries: int = 0
    on_failure: OnFailure = "stop"
    device: str | None = None
    python: Path | None = None
    in_run: bool = True

    def __str__(self) -> str:
        return f"reward {self.name!r} (from {self.provenance})"

    @property
    def seconds(self) -> float | None:
        """The time limit of a call in seconds; None is no limit."""
        if self.timeout is None:
            return self.spec.timeout
        return None if self.timeout == "none" else self.timeout
