"""The settings of a report: which preset a run is closest to, and where runs differ from it and from each other."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tdmr1_core.config import RunConfig
from tdmr1_core.config_loading import dump, preset_names, read_preset, resolve
from tdmr1_core.errors import RunWarning, Tdmr1Error
from tdmr1_core.runs.checkpoints.changes import Changes, find_changes
from tdmr1_core.runs.output.report import ALWAYS, Report
from tdmr1_core.runs.output.report_tables import DIFFERS

DEFAULTS = "the defaults"
MEASURED = ("rollout.sigmas", "rollout.shift")
"""Settings that a run stores itself if nothing set them."""


@dataclass(frozen=True)
class Reference:
    """The preset that a run is closest to, or the defaults: its name, and the settings that differ from it."""

    name: str
    changes: Changes


def closest_preset(config: RunConfig) -> Reference:
    """The preset with the fewest settings that differ from those of a run, with the same model and rewards.

    A run does not store its preset. At a tie, the defaults come first, then the presets by name.
    """
    given = dump(config)
    fixed = {"kind": config.kind, "rewards": given["rewards"], "model": {"name": config.model.name}}
    found = []
    for name in (None, *preset_names()):
        preset = read_preset(name) if name else {}
        if name and preset.get("kind", "train") != config.kind:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RunWarning)
                expected = dump(resolve([preset, fixed]))
        except Tdmr1Error:  # a preset that does not fit the rewards
            continue
        found.append(Reference(name or DEFAULTS, _changes(expected, given)))
    return min(found, key=lambda reference: len(reference.changes))


def _changes(expected: dict[str, Any], given: dict[str, Any]) -> Changes:
    """The settings that differ, without those that the run measured, and with a whole list where its length differs."""
    changes = find_changes(expected, given)
    return {name: values for name, values in changes.items() if not (name in MEASURED and values[0] is None)}


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """The settings of a tree by dotted name. Items of lists are numbered from 0, as `--set` does."""
    if isinstance(tree, list | tuple) and tree and isinstance(tree[0], dict):
        tree = {str(index): item for index, item in enumerate(tree)}
    if not isinstance(tree, dict) or not tree:
        return {prefix.rstrip("."): tree}
    return {name: value for key, item in tree.items() for name, value in flat(item, f"{prefix}{key}.").items()}


def settings_table(reports: Sequence[Report], names: Sequence[str]) -> dict[str, Any]:
    """A table of the settings that are always shown, that differ from the preset of a run, or between the runs.

    `marked` has the row numbers of settings that differ between runs; `bold` the cells [row, column] that differ from
    the preset of their run. A single run has a column for its preset.
    """
    references = [closest_preset(report.config) for report in reports]
    changed = [reference.changes for reference in references]
    values = [
        _with_changed_lists(flat(dump(report.config)), each) for report, each in zip(reports, changed, strict=True)
    ]
    known = dict.fromkeys(name for each in values for name in each)
    differing = {name for name in known if len({repr(each.get(name)) for each in values}) > 1}
    shown = [name for name in known if name in differing.union(ALWAYS, *changed)]
    presets = [{name: each.get(name, (values[0].get(name), None))[0] for name in shown} for each in changed]
    columns = [presets[0], *values] if len(reports) == 1 else values
    first = 1 + len(columns) - len(reports)
    heading = references[0].name if references[0].name == DEFAULTS else f"preset {references[0].name}"
    return {
        "columns": ["setting", *([heading] if len(reports) == 1 else []), *names],
        "rows": [[name, *(_text(column.get(name)) for column in columns)] for name in shown],
        "marked": [row for row, name in enumerate(shown) if name in differing],
        "sign": DIFFERS,
        "bold": [
            [row, first + run] for row, name in enumerate(shown) for run, each in enumerate(changed) if name in each
        ],
        "presets": [reference.name for reference in references],
    }


def _with_changed_lists(values: dict[str, Any], changes: Changes) -> dict[str, Any]:
    """The settings, with each list of another length than in the preset as one setting."""
    lists = {name: value for name, (_, value) in changes.items() if name not in values}
    return {
        name: value for name, value in values.items() if not name.startswith(tuple(f"{each}." for each in lists))
    } | lists


def _text(value: Any) -> str:
    """A setting as text."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list) and value and all(isinstance(item, dict) and "name" in item for item in value):
        return ", ".join(str(item["name"]) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
