"""What a run folder tells of its run: settings, curves, evaluations, alarms, updates left out and continuations.

It is read from the files that the run writes line by line, so a run that goes on or was cut short has a report too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tdmr1_core.config import RunConfig
from tdmr1_core.config_loading import dump
from tdmr1_core.runs.checkpoints.fingerprints import read_header
from tdmr1_core.runs.checkpoints.resume import RESUMES, find_changes, load_run_config
from tdmr1_core.runs.evaluation.evaluate import Measure
from tdmr1_core.runs.evaluation.guard import Drift, GuardReading, drifts, first_reading, is_too_far
from tdmr1_core.runs.jsonl import LARGEST_COUNT, Row, number, read_lines, step_of
from tdmr1_core.runs.metrics_log import EVALUATIONS, GUARD, METRICS

ALWAYS = ("kind", "model.name", "seed", "iterations", "batch.groups", "batch.group_size", "rollout.steps")
"""Settings that are shown even where they are at their default."""


@dataclass(frozen=True)
class Evaluated:
    """A reward on a prompt set over the run: (iteration, measure) for every evaluation, oldest first."""

    prompts: str
    reward: str
    points: list[tuple[int, Measure]]


@dataclass(frozen=True)
class Report:
    """A run as its folder has it; rows are the lines of its files."""

    folder: Path
    config: RunConfig
    versions: dict[str, str]
    metrics: list[dict[str, Any]]
    evaluations: list[Evaluated]
    looks: list[GuardReading]
    resumes: list[dict[str, Any]]

    @property
    def iterations(self) -> int:
        """How many are over."""
        return int(self.metrics[-1]["step"]) if self.metrics else 0

    @property
    def settings(self) -> dict[str, Any]:
        """Dotted names and values of what is not at its default, after a few that every reader asks for."""
        usual = dump(RunConfig(kind=self.config.kind, rewards=self.config.rewards))
        changed = {name: new for name, (_, new) in find_changes(usual, dump(self.config)).items()}
        rewards = {f"rewards.{reward.name}": f"weight {reward.weight:g}" for reward in self.config.rewards}
        return {name: _value(self.config, name) for name in ALWAYS} | rewards | changed

    @property
    def curves(self) -> dict[str, list[tuple[int, float]]]:
        """(iteration, value) of the combined and each reward, or of the losses where there are none."""
        wanted = ["reward/mean", *(f"reward/{reward.name}/mean" for reward in self.config.rewards)]
        if len(self.config.rewards) == 1:
            wanted = wanted[:1]
        if not any("reward/mean" in row for row in self.metrics):
            wanted = ["loss/generator", "loss/fake"]
        curves = {name: [(row["step"], row[name]) for row in self.metrics if name in row] for name in wanted}
        return {name: points for name, points in curves.items() if points}

    @property
    def alarms(self) -> list[tuple[int, str]]:
        """(iteration, sentence) of every alarm of the guard."""
        return [(look.step, alarm) for look in self.looks for alarm in look.alarms]

    @property
    def drifts(self) -> list[tuple[Drift, bool]]:
        """How far the guard's numbers are from the first look, farthest first, and whether that is too far."""
        first = first_reading(self.looks, self.looks[-1].subject) if self.looks else None
        if first is None or first is self.looks[-1]:
            return []
        found = sorted(drifts(first, self.looks[-1]), key=lambda departure: -abs(departure.size))
        return [(departure, is_too_far(departure, self.config.guard.threshold)) for departure in found]

    @property
    def left_out(self) -> dict[str, int]:
        """Iterations in which a role was not updated, updates that were not finite, and images without a reward."""
        counts: dict[str, int] = {}
        for role in ("fake", "surrogate", "generator"):
            if role == "surrogate" and self.config.kind != "train":
                continue
            missing = sum(f"grad_norm/{role}" not in row for row in self.metrics)
            counts[f"iterations without an update of the {role}"] = missing
            counts[f"updates of the {role} that were not finite"] = self._total(f"not_finite/{role}")
        for reward in self.config.rewards:
            for what, told in (("failed", "failed on"), ("unjudged", "could not judge")):
                counts[f"images that {reward.name} {told}"] = self._total(f"reward/{reward.name}/{what}")
        return {what: count for what, count in counts.items() if count}

    def _total(self, name: str) -> int:
        """The sum of a metric that counts something."""
        return round(sum(count for row in self.metrics if 0 <= (count := row.get(name, 0)) <= LARGEST_COUNT))


def read_report(folder: Path) -> Report:
    """Read a run folder. Raises Tdmr1Error for one that is no run's, or that leads out of itself."""
    config = load_run_config(folder)
    return Report(
        folder,
        config,
        read_header(folder).versions,
        read_lines(folder / METRICS, _numbers),
        read_evaluations(folder),
        read_lines(folder / GUARD, GuardReading.of),
        read_lines(folder / RESUMES, _resume),
    )


def read_evaluations(folder: Path) -> list[Evaluated]:
    """Every reward on every prompt set, as a run folder has it. Raises Tdmr1Error where the file can't be read."""
    found: dict[tuple[str, str], list[tuple[int, Measure]]] = {}
    for measured in read_lines(folder / EVALUATIONS, _measured):
        for prompts, reward, step, value in measured:
            if math.isfinite(value.mean):
                found.setdefault((prompts, reward), []).append((step, value))
    return [Evaluated(prompts, reward, points) for (prompts, reward), points in found.items()]


def _measured(row: Row) -> list[tuple[str, str, int, Measure]]:
    """Prompt set, reward, iteration and measure for each reward of a line of evaluations."""
    step, prompts = step_of(row), str(row["prompts"])
    names = [key.removesuffix("/mean") for key in row if key.endswith("/mean")]
    return [(prompts, name, step, Measure.of(row, name, row["n"])) for name in names]


def _numbers(row: Row) -> Row:
    """A line of metrics, if it is one."""
    step_of(row)
    for value in row.values():
        number(value)
    return row


def _resume(row: Row) -> Row:
    """A line of continuations, if it is one."""
    changes = {name: [old, new] for name, (old, new) in row["changes"].items()}
    differences = [str(sentence) for sentence in row.get("differences", ())]
    return {"checkpoint": str(row["checkpoint"]), "changes": changes, "differences": differences}


def _value(config: RunConfig, name: str) -> Any:
    """The setting of a dotted name."""
    tree: Any = dump(config)
    for part in name.split("."):
        tree = tree[part] if isinstance(tree, Mapping) else None
    return tree
