"""What a run folder tells of its run: settings, curves, evaluations, alarms, updates left out and continuations.

It is read from the files that the run writes line by line, so a run that goes on or was cut short has a report too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tdmr1_core.config import RunConfig
from tdmr1_core.configure import dump
from tdmr1_core.runs.continuing import RESUMES, find_changes, load_run_config
from tdmr1_core.runs.evaluate import Measure
from tdmr1_core.runs.foundations import read_header
from tdmr1_core.runs.guard import Departure, Look, departures, first_look, is_too_far
from tdmr1_core.runs.tracking import EVALUATIONS, GUARD, METRICS

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
    looks: list[Look]
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
    def departures(self) -> list[tuple[Departure, bool]]:
        """How far the guard's numbers are from the first look, farthest first, and whether that is too far."""
        first = first_look(self.looks, self.looks[-1].subject) if self.looks else None
        if first is None or first is self.looks[-1]:
            return []
        found = sorted(departures(first, self.looks[-1]), key=lambda departure: -abs(departure.size))
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
            broken = sum(row.get(f"not_finite/{role}", 0) for row in self.metrics)
            counts[f"updates of the {role} that were not finite"] = int(broken)
        for reward in self.config.rewards:
            for what, told in (("failed", "failed on"), ("unjudged", "could not judge")):
                images = sum(row.get(f"reward/{reward.name}/{what}", 0) for row in self.metrics)
                counts[f"images that {reward.name} {told}"] = round(images)
        return {what: count for what, count in counts.items() if count}


def read_report(folder: Path) -> Report:
    """Read a run folder. Raises Tdmr1Error for one that is no run's, or that leads out of itself."""
    config = load_run_config(folder)
    return Report(
        folder,
        config,
        read_header(folder).versions,
        list(_lines(folder / METRICS)),
        _evaluated(folder),
        [Look.of(row) for row in _lines(folder / GUARD)],
        list(_lines(folder / RESUMES)),
    )


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file of lines, but for a last one that a crash has cut short."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            return


def _evaluated(folder: Path) -> list[Evaluated]:
    found: dict[tuple[str, str], list[tuple[int, Measure]]] = {}
    for row in _lines(folder / EVALUATIONS):
        for name in (key.removesuffix("/mean") for key in row if key.endswith("/mean")):
            value = Measure(row[f"{name}/mean"], row[f"{name}/stderr"], row["n"])
            if math.isfinite(value.mean):
                found.setdefault((row["prompts"], name), []).append((row["step"], value))
    return [Evaluated(prompts, reward, points) for (prompts, reward), points in found.items()]


def _value(config: RunConfig, name: str) -> Any:
    """The setting of a dotted name."""
    tree: Any = dump(config)
    for part in name.split("."):
        tree = tree[part] if isinstance(tree, Mapping) else None
    return tree
