"""Small runs of the embedded model for tests."""

from __future__ import annotations

from typing import Any

from tdmr1_core.config import RunConfig
from tdmr1_core.config_loading import parse_assignments, read_preset, resolve

SMALL = (
    "iterations=3",
    "batch.groups=2",
    "batch.group_size=4",
    "evaluation.images=12",
    "saving.samples_every=0",
    "saving.tensorboard=false",
)


def small_config(*assignments: str, preset: str = "tiny", **flags: Any) -> RunConfig:
    """The tiny preset with two groups of four for three iterations, and whatever else is set."""
    rewards = [] if preset.startswith("distill") else [{"name": "object_count"}]
    return resolve([read_preset(preset), {"rewards": rewards, **flags}, parse_assignments([*SMALL, *assignments])])


class Silent:
    """An observer that keeps reports and shows nothing."""

    def __init__(self) -> None:
        self.reports: list[Any] = []

    def started(self, engine: Any) -> None: ...

    def iteration(self, report: Any) -> None:
        self.reports.append(report)

    def evaluating(self, role: str, prompt_set: str) -> None: ...

    def evaluated(self, step: int, evaluation: Any) -> None: ...

    def saved(self, checkpoint: Any) -> None: ...

    def stopping(self) -> None: ...
    def waiting(self, text) -> None: ...
