"""Small runs of the embedded model for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tdmr1_core.config import RunConfig
from tdmr1_core.config_loading import parse_assignments, read_preset, resolve
from tdmr1_core.runs.checkpoints.resume import RESUMES
from tdmr1_core.runs.output.resources import RESOURCES

SMALL = (
    "iterations=3",
    "batch.groups=2",
    "batch.group_size=4",
    "evaluation.images=4",
    "saving.samples_every=0",
    "saving.tensorboard=false",
)


def small_config(*assignments: str, preset: str = "tiny", **settings: Any) -> RunConfig:
    """The tiny preset with two groups of four images for three iterations, changed by assignments and settings."""
    rewards = [] if preset.startswith("distill") else [{"name": "object_count"}]
    changes = [parse_assignments([each]) for each in (*SMALL, *assignments)]  # later ones override earlier ones
    return resolve([read_preset(preset), {"rewards": rewards, **settings}, *changes])


class Silent:
    """An observer that keeps the reports and prints nothing."""

    def __init__(self) -> None:
        self.reports: list[Any] = []

    def started(self, engine: Any) -> None: ...

    def iteration(self, report: Any) -> None:
        self.reports.append(report)

    def evaluating(self, role: str, prompt_set: str) -> None: ...

    def evaluated(self, step: int, evaluation: Any) -> None: ...

    def saved(self, checkpoint: Any) -> None: ...

    def stopping(self) -> None: ...
    def tracked(self, address) -> None: ...

    def alarmed(self, step, alarm) -> None: ...

    def waiting(self, text) -> None: ...


def timeless(row: dict) -> dict:
    return {key: value for key, value in row.items() if not key.startswith("time/") and key != "images_per_second"}


def rows(path: Path) -> list[dict]:
    return [timeless(json.loads(line)) for line in path.read_text().splitlines()]


def files(folder: Path) -> dict[str, object]:
    """The files of a run by relative path, without timings, TensorBoard logs, resumes and resources."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "tensorboard" not in path.parts and path.name not in (RESUMES, RESOURCES):
            found[str(path.relative_to(folder))] = rows(path) if path.suffix == ".jsonl" else path.read_bytes()
    return found
