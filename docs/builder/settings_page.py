"""docs/settings.md: every setting, read from the pydantic models, and the options of every reward of tdmr1."""

from __future__ import annotations

from pkgutil import resolve_name
from typing import Any

from builder.cells import code, prose, table, value
from tdmr1_core.config import RewardConfig, RunConfig
from tdmr1_core.settings.mistakes import accepted_values
from tdmr1_core.settings.reference import REWARD_ENTRY, SettingReference, setting_references
from tdmr1_rewards.api import RewardSpec
from tdmr1_rewards.builtin import SPECS

HEAD = """# Settings

Every setting of a run, generated from the pydantic models. `tdmr1 config show` prints the settings in a terminal, with
the values of a preset, and `--json` has all columns. [Usage](usage.md#settings) explains which layer of settings
overrides which.

- **values**: what is accepted. Everything else is refused before anything is loaded.
- **unit**: the unit of a number.
- **published**: the value in the settings that were published with TDM-R1 for SD3.5-medium. If the values differ, each
  has its presets (`ocr`, `geneval`, `imagereward`, `hps`). A dash means that nothing was published.
- **source**: the paper with its equation, the authors' trainer, or this project. [Differences](differences.md) lists
  where the two trainers differ.
"""
REWARDS_HEAD = """## `rewards[N]`

`rewards`, `evaluation.rewards` and `guard.rewards` are lists of entries with these settings. In `--set`, N is the
number of the entry, from 0: `--set rewards.0.timeout=60`.
[When a reward fails](writing_rewards.md#when-a-reward-fails) explains the failures. The options of each reward are
[below](#options-of-rewards).
"""
OPTIONS_HEAD = """## Options of rewards

What `rewards[N].options` accepts for each reward of tdmr1, such as `--set rewards.0.options.score=graded`.
`tdmr1 rewards info NAME` shows the options of any installed reward in a terminal.
"""


def settings_page() -> str:
    """The text of docs/settings.md."""
    parts = [HEAD]
    section = None
    for setting in sorted(setting_references(), key=lambda each: "." in each.name):
        name = "rewards[N]" if setting.name.startswith(REWARD_ENTRY) else setting.name.rpartition(".")[0]
        if name != section:
            section = name
            parts.append(_heading(section))
        parts.append(_entry(setting))
    return "\n".join([*parts, OPTIONS_HEAD, *map(_options, SPECS)])


def _heading(section: str) -> str:
    if section == "rewards[N]":
        return REWARDS_HEAD
    if not section:
        return "## The run\n\nSettings of the whole run.\n"
    model = RunConfig.model_fields[section].annotation
    assert isinstance(model, type)
    return f"## `{section}`\n\n{prose(' '.join((model.__doc__ or '').split()))}\n"


def _entry(setting: SettingReference) -> str:
    """The heading, the meaning and the row of one setting."""
    default = "required" if _is_required(setting) else value(setting.default)
    cells = [default, prose(setting.values), setting.unit or "–", _published(setting.published), prose(setting.source)]
    row = table(["default", "values", "unit", "published", "source"], [cells])
    shown = setting.name.replace(REWARD_ENTRY, "rewards[N].")
    return f"### `{shown}`\n\n{prose(setting.meaning)}\n\n{row}\n"


def _options(spec: RewardSpec) -> str:
    """The heading of a reward and the table of its options."""
    heading = f"### Options of `{spec.name}`\n\n{prose(spec.summary)}\n"
    if spec.options is None:
        return f"{heading}\nIt has no options.\n"
    rows = []
    for name, field in resolve_name(spec.options).model_fields.items():
        default = "required" if field.is_required() else value(field.get_default(call_default_factory=True))
        rows.append([code(name), default, prose(accepted_values(field)), prose(field.description or "–")])
    return f"{heading}\n{table(['option', 'default', 'values', 'meaning'], rows)}\n"


def _is_required(setting: SettingReference) -> bool:
    name = setting.name.removeprefix(REWARD_ENTRY)
    return setting.name != name and RewardConfig.model_fields[name].is_required()


def _published(values: dict[str, Any] | None) -> str:
    """The published value; with the presets if they differ."""
    if values is None:
        return "–"
    presets: dict[str, list[str]] = {}
    for preset, item in values.items():
        presets.setdefault(value(item), []).append(code(preset))
    if len(presets) == 1:
        return next(iter(presets))
    return "; ".join(f"{shown} ({', '.join(names)})" for shown, names in presets.items())
