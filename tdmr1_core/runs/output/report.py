"""The contents of a report: settings, curves, evaluations, guard alarms, skipped updates and resumes of a run.

They are read from the log files of the run folder, so a run that is not finished has a report too.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tdmr1_core.config import RunConfig
from tdmr1_core.config_loading import dump
from tdmr1_core.prompts.sets import short_names
from tdmr1_core.runs.checkpoints.changes import find_changes
from tdmr1_core.runs.checkpoints.resume import RESUMES
from tdmr1_core.runs.checkpoints.run_config import load_run_config, read_header
from tdmr1_core.runs.evaluation.evaluate import Measure
from tdmr1_core.runs.evaluation.guard import Drift, GuardReading, drifts, first_reading, is_too_far
from tdmr1_core.runs.jsonl import LARGEST_COUNT, Row, number, read_lines, step_of
from tdmr1_core.runs.metrics_log import EVALUATIONS, GUARD, METRICS
from tdmr1_core.runs.output.resources import Usage, read_resources

ALWAYS = ("kind", "model.name", "seed", "iterations", "batch.groups", "batch.group_size", "rollout.steps")
"""Settings that are always shown, also with their default value."""


@dataclass(frozen=True)
class Evaluated:
    """One reward on one prompt set: (iteration, measure) of every evaluation, oldest first."""

    prompts: str
    reward: str
    points: list[tuple[int, Measure]]


@dataclass(frozen=True)
class Report:
    """A run, read from its folder. `metrics` and `resumes` are the lines of the files of that name."""

    folder: Path
    config: RunConfig
    versions: dict[str, str]
    metrics: list[dict[str, Any]]
    evaluations: list[Evaluated]
    readings: list[GuardReading]
    resumes: list[dict[str, Any]]
    usage: list[Usage] = field(default_factory=list)

    @property
    def iterations(self) -> int:
        """The number of completed iterations."""
        return int(self.metrics[-1]["step"]) if self.metrics else 0

    @property
    def settings(self) -> dict[str, Any]:
        """Settings by dotted name: first those in ALWAYS, then all that differ from their default."""
        defaults = dump(RunConfig(kind=self.config.kind, rewards=self.config.rewards))
        changed = {name: new for name, (_, new) in find_changes(defaults, dump(self.config)).items()}
        rewards = {f"rewards.{reward.name}": f"weight {reward.weight:g}" for reward in self.config.rewards}
        return {name: _value(self.config, name) for name in ALWAYS} | rewards | changed

    @property
    def curves(self) -> dict[str, list[tuple[int, float]]]:
        """(iteration, value) of the combined reward and of each reward; of the losses if there are no rewards."""
        wanted = ["reward/mean", *(f"reward/{reward.name}/mean" for reward in self.config.rewards)]
        if len(self.config.rewards) == 1:
            wanted = wanted[:1]
        if not any("reward/mean" in row for row in self.metrics):
            wanted = ["loss/generator", "loss/fake"]
        curves = {name: [(row["step"], row[name]) for row in self.metrics if name in row] for name in wanted}
        return {name: points for name, points in curves.items() if points}

    @property
    def continuations(self) -> list[int]:
        """The iteration after which each later session of the run continued."""
        names = [resume["checkpoint"].removeprefix("step-") for resume in self.resumes]
        return [int(name) for name in names if name.isascii() and name.isdigit()]

    @property
    def alarms(self) -> list[tuple[int, str]]:
        """(iteration, message) of every guard alarm."""
        return [(reading.step, alarm) for reading in self.readings for alarm in reading.alarms]

    @property
    def drifts(self) -> list[tuple[Drift, bool]]:
        """The drift of each guard measure in the last reading, largest first, and whether it is too far."""
        first = first_reading(self.readings, self.readings[-1].subject) if self.readings else None
        if first is None or first is self.readings[-1]:
            return []
        found = sorted(drifts(first, self.readings[-1]), key=lambda drift: -abs(drift.size))
        return [(drift, is_too_far(drift, self.config.guard.threshold)) for drift in found]

    @property
    def skipped(self) -> dict[str, int]:
        """Counts of iterations without an update of a role, updates that were not finite, and images without a score.

        Counts of 0 are omitted.
        """
        counts: dict[str, int] = {}
        for role in ("fake", "surrogate", "generator"):
            if role == "surrogate" and self.config.kind != "train":
                continue
            missing = sum(f"grad_norm/{role}" not in row for row in self.metrics)
            counts[f"iterations without an update of the {role}"] = missing
            counts[f"updates of the {role} that were not finite"] = self._total(f"not_finite/{role}")
        for reward in self.config.rewards:
            for metric, verb in (("failed", "failed on"), ("unjudged", "could not judge")):
                counts[f"images that {reward.name} {verb}"] = self._total(f"reward/{reward.name}/{metric}")
        return {what: count for what, count in counts.items() if count}

    def _total(self, name: str) -> int:
        """The sum of a counter over all iterations. Values outside 0 to LARGEST_COUNT are ignored."""
        return round(sum(count for row in self.metrics if 0 <= (count := row.get(name, 0)) <= LARGEST_COUNT))


def read_report(folder: Path) -> Report:
    """Read a run folder. Raises Tdmr1Error for any other folder, and for links that lead out of it."""
    config = load_run_config(folder)
    return Report(
        folder,
        config,
        read_header(folder).versions,
        read_lines(folder / METRICS, _numbers),
        read_evaluations(folder),
        read_lines(folder / GUARD, GuardReading.of),
        read_lines(folder / RESUMES, _resume),
        read_resources(folder),
    )


def read_evaluations(folder: Path) -> list[Evaluated]:
    """Every reward on every prompt set in a run folder. Raises Tdmr1Error if the file cannot be read."""
    found: dict[tuple[str, str], list[tuple[int, Measure]]] = {}
    lines = read_lines(folder / EVALUATIONS, _measured)
    names = short_names([prompts for measured in lines for prompts, _, _, _ in measured if os.path.isabs(prompts)])
    for measured in lines:
        for prompts, reward, step, value in measured:
            if math.isfinite(value.mean):
                found.setdefault((names.get(prompts, prompts), reward), []).append((step, value))
    return [Evaluated(prompts, reward, points) for (prompts, reward), points in found.items()]


def _measured(row: Row) -> list[tuple[str, str, int, Measure]]:
    """Prompt set, reward, iteration and measure of each reward in a line of evaluations.jsonl."""
    step, prompts = step_of(row), str(row["prompts"])
    names = [key.removesuffix("/mean") for key in row if key.endswith("/mean")]
    return [(prompts, name, step, Measure.of(row, name, row["n"])) for name in names]


def _numbers(row: Row) -> Row:
    """Check a line of metrics.jsonl. Raises one of `durable_files.MALFORMED`."""
    step_of(row)
    for value in row.values():
        number(value)
    return row


def _resume(row: Row) -> Row:
    """Convert a line of resumes.jsonl. Raises one of `durable_files.MALFORMED`."""
    changes = {name: [old, new] for name, (old, new) in row["changes"].items()}
    differences = [str(difference) for difference in row.get("differences", ())]
    return {"checkpoint": str(row["checkpoint"]), "changes": changes, "differences": differences}


def _value(config: RunConfig, name: str) -> Any:
    """The value of the setting with a dotted name."""
    tree: Any = dump(config)
    for part in name.split("."):
        tree = tree[part] if isinstance(tree, Mapping) else None
    return tree
