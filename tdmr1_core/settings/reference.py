"""Every setting with its default, values, unit, meaning, source and published value, for `config show` and the docs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tdmr1_core.config import RewardConfig, RunConfig
from tdmr1_core.config_loading import dump, read_preset, resolve
from tdmr1_core.settings.mistakes import accepted_values
from tdmr1_core.settings.origins import ORIGINS, PUBLISHED_MODEL, PUBLISHED_PRESETS, Origin

REWARD_ENTRY = "rewards.N."
"""The prefix of the settings of one entry in a list of rewards."""


@dataclass(frozen=True)
class SettingReference:
    """What is known about a setting."""

    name: str
    """The dotted name."""
    default: Any
    values: str
    """The accepted values in plain words, with the bounds of numbers."""
    unit: str
    """Empty if the value is not a number."""
    meaning: str
    source: str
    published: dict[str, Any] | None
    """The value in each preset of `PUBLISHED_PRESETS`; None if the paper and the authors' trainer have none."""


def setting_references() -> list[SettingReference]:
    """All settings in the order of the tree; the settings of a reward are last."""
    trees = {preset: dump(_published(preset)) for preset in PUBLISHED_PRESETS}
    found = []
    for name, field in (*_fields(RunConfig, ""), *_fields(RewardConfig, REWARD_ENTRY)):
        origin = ORIGINS.get(name, Origin(""))
        published = {preset: _at(tree, name) for preset, tree in trees.items()} if origin.is_published else None
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        found.append(
            SettingReference(
                name,
                default,
                accepted_values(field),
                origin.unit,
                " ".join((field.description or "").split()),
                origin.source,
                published,
            )
        )
    return found


def _fields(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
    """The dotted name and the field of each setting."""
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _fields(inner, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def _published(preset: str) -> RunConfig:
    """The settings of a published preset; the reward is a stand-in if the preset names none."""
    return resolve([{"rewards": [{"name": preset}]}, PUBLISHED_MODEL, read_preset(preset)])


def _at(tree: dict[str, Any], name: str) -> Any:
    for part in name.split("."):
        tree = tree[part]
    return tree
