"""From the options of a command line, or the arguments of `tdmr1_core.train`, to a resolved run.

Settings come from four layers, and a later layer overrides an earlier one: preset, CONFIG.yaml, options, --set. The
preset is the first of these that exists: --preset; the model's preset for the first reward (`tiny-human`); the model's
preset (`tiny`); the first reward's preset. A CONFIG.yaml does not change which preset is used: settings that it leaves
open come from the preset. `--preset none` starts from the published defaults. The config.yaml of a run names every
setting, so that it means the same with any preset.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tdmr1_core.errors import Tdmr1Error, raise_together

if TYPE_CHECKING:
    from tdmr1_core.config import RunConfig
    from tdmr1_core.models.registry import ModelEntry
    from tdmr1_core.plugins import Extensions
    from tdmr1_core.preflight.resolved import ResolvedRun
    from tdmr1_core.preflight.rewards import RewardFinder
    from tdmr1_core.prompts.sets import PromptSet

DEFAULT_MODEL = "tiny-tdm"
NO_PRESET = "none"
STAND_IN_REWARD = "object_count"
"""Used where a config must name a reward, but no reward is called."""
RUN_HEADER = "tdmr1"
"""The key of a run's config.yaml that holds versions and fingerprints instead of settings."""

Kind = Literal["train", "distill"]
Tree = dict[str, Any]


@dataclass(frozen=True)
class Flags:
    """The options of a command line that are settings, as typed, or the same arguments of a Python program.

    A program may give the settings of a reward in place of a text of --reward. Its `settings` override `sets`.
    """

    config: Path | None = None
    model: str | None = None
    rewards: Sequence[str | Tree] = ()
    preset: str | None = None
    prompts: str | None = None
    iterations: int | None = None
    seed: int | None = None
    sets: Sequence[str] = ()
    model_path: Path | None = None
    lora: Path | None = None
    settings: Tree = field(default_factory=dict)


@dataclass(frozen=True)
class TypedReward:
    """One `--reward`: its name in metrics, its source if that is not the name, and its weight."""

    name: str
    source: str | None
    weight: float

    @property
    def tree(self) -> Tree:
        """The settings that it stands for."""
        source = {} if self.source is None else {"source": self.source}
        return {"name": self.name, "weight": self.weight, **source}


def resolve_settings(
    flags: Flags,
    kind: Kind | None,
    extensions: Extensions,
    *,
    needs_reward: bool = True,
    previews: bool = False,
    evaluates: bool = True,
    prompt_sets: Mapping[str, PromptSet] | None = None,
) -> ResolvedRun:
    """Merge the layers into one config and look up everything it refers to. Torch is not needed.

    `kind` is what the command does; None takes it from the settings. Without `needs_reward` a stand-in reward is used
    if none is named; prompts are then checked only against named rewards, and with `previews` also against the default
    reward of the model, as in a training. `evaluates` and `prompt_sets` are those of `resolve_run`. Raises one
    Tdmr1Error with all mistakes.
    """
    from tdmr1_core.config_loading import (
        fitting_evaluation,
        keep_reward_settings,
        merge,
        named_rewards,
        read_preset,
        resolve,
    )
    from tdmr1_core.preflight.rewards import RewardFinder

    # Each step goes on after an error of an earlier one, so that all mistakes are reported together.
    errors: list[Tdmr1Error] = []
    finder = RewardFinder(extensions.plugins.rewards)
    entry: ModelEntry | None = None
    config: RunConfig | None = None
    layers = _read_layers(flags, errors)
    named = named_rewards(layers.merged.get("rewards"))
    name = _text_at(layers.merged, "model", "name") or DEFAULT_MODEL
    try:
        entry = _model_entry(name, layers.merged, extensions)
    except Tdmr1Error as error:
        errors.append(error)
    distills = kind == "distill" or (kind is None and layers.merged.get("kind") == "distill")
    if entry is not None and not distills and entry.needs_lora and entry.lora is None:
        errors.append(entry.missing_lora())
    model_settings = entry.settings if entry else {}
    base: Tree = {"model": {"name": name}, "kind": kind or "train"}
    default_reward = _default_reward(entry, needs_reward=needs_reward)
    if default_reward and not distills:
        base["rewards"] = [{"name": default_reward}]
    preset_name = flags.preset or _default_preset(named, entry, finder, distills=distills)
    try:
        preset = read_preset(preset_name) if preset_name not in (None, NO_PRESET) else {}
    except Tdmr1Error as error:
        errors.append(error)
        preset = {}
    if kind == "train" and not distills and not (named or "rewards" in base or preset.get("rewards")):
        errors.append(_no_reward(preset_name, extensions))
        base["rewards"] = [{"name": STAND_IN_REWARD}]  # so that the other settings are checked
    preset = merge(merge(base, preset), model_settings)
    file = keep_reward_settings(layers.file, preset)
    options = keep_reward_settings(layers.options, merge(preset, file))
    try:
        config = resolve([preset, fitting_evaluation(preset, named), file, options, layers.sets])
    except Tdmr1Error as error:
        errors.append(error)
    if config is not None and kind is not None and config.kind != kind:
        errors.append(_wrong_kind(config.kind, kind))
    if errors:
        _raise_all(errors, finder, named, config)
    assert config is not None
    from tdmr1_core.preflight.resolved import resolve_run

    used_preset = preset_name if preset_name != NO_PRESET else None
    scores = needs_reward or bool(named) or (previews and entry is not None and entry.default_reward is not None)
    return resolve_run(
        config,
        extensions,
        entry=entry,
        finder=finder,
        preset=used_preset,
        scores=scores,
        evaluates=evaluates,
        prompt_sets=prompt_sets,
    )


@dataclass(frozen=True)
class _Layers:
    """The layers above the preset. `merged` are all three together."""

    file: Tree
    options: Tree
    sets: Tree
    merged: Tree


def _read_layers(flags: Flags, errors: list[Tdmr1Error]) -> _Layers:
    """The settings of CONFIG.yaml, options and --set. A layer with a mistake is empty; the mistake goes to `errors`."""
    from tdmr1_core.config_loading import keep_reward_settings, merge, parse_assignments

    file: Tree = {}
    options: Tree = {}
    sets: Tree = {}
    merged: Tree = {}
    try:
        file = read_config(flags.config)
    except Tdmr1Error as error:
        errors.append(error)
    try:
        options = _flag_tree(flags)
    except Tdmr1Error as error:
        errors.append(error)
    try:
        sets = merge(parse_assignments(flags.sets), flags.settings)
    except Tdmr1Error as error:
        errors.append(error)
    try:
        merged = merge(merge(file, keep_reward_settings(options, file)), sets)
    except Tdmr1Error as error:
        errors.append(error)
    return _Layers(file, options, sets, merged)


def _default_reward(entry: ModelEntry | None, *, needs_reward: bool) -> str | None:
    """The reward of a run that names none: the model's, or the stand-in where none is called; None if there is none."""
    default = entry.default_reward if entry else STAND_IN_REWARD
    return default if needs_reward else default or STAND_IN_REWARD


def _raise_all(errors: list[Tdmr1Error], finder: RewardFinder, named: Sequence[Tree], config: RunConfig | None) -> None:
    """Raise the errors together with one for each reward that cannot be found."""
    from tdmr1_core.config_loading import source_of

    rewards = [(source_of(reward), _python(reward)) for reward in named]
    if config is not None:
        listed = (*config.rewards, *config.evaluation.rewards, *(config.guard.rewards or ()))
        rewards = [(reward.source or reward.name, reward.python) for reward in listed]
    for reward in dict.fromkeys(rewards):
        try:
            finder.find(*reward)
        except Tdmr1Error as error:
            errors.append(error)
    raise_together(errors)


def read_config(path: Path | None) -> Tree:
    """The settings in a YAML file; none without a file.

    In the config.yaml of a run, which has a header, settings newer than the run have the value of `FORMER_DEFAULTS`.
    """
    from tdmr1_core.config_loading import read_file, with_former_defaults

    if path is None:
        return {}
    tree = read_file(path)
    settings = {key: value for key, value in tree.items() if key != RUN_HEADER}
    return with_former_defaults(settings) if RUN_HEADER in tree else settings


def parse_reward(text: str) -> TypedReward:
    """Parse `[NAME=]SOURCE[:WEIGHT]`. The path of a file is made absolute, because a run may be resumed from anywhere.

    The weight is the number after the last colon; a port or a function name is not a weight. Raises Tdmr1Error for
    a weight that is not a number, and for a source of no known form (`tdmr1_rewards.sources`).
    """
    from tdmr1_rewards.sources.source import FORMS, PATTERN, parse_source

    form = rf"(?:(?P<name>[A-Za-z_][\w-]*)=)?(?P<source>{PATTERN})(?::(?P<weight>[^:/]*))?"
    match = re.fullmatch(form, text)
    if match is None:
        raise Tdmr1Error(
            f"--reward {text!r} is not of a known form", FORMS, code="reward-source", values={"source": text}
        )
    source, name = parse_source(match["source"]).absolute(), match["name"]
    weight = 1.0 if match["weight"] is None else _weight(match["weight"], text, match["source"])
    if source.kind == "registered" and name in (None, source.place):
        return TypedReward(source.place, None, weight)
    return TypedReward(name or source.name, str(source), weight)


def _flag_tree(flags: Flags) -> Tree:
    """The options as settings, with absolute paths, because a run may be resumed from anywhere."""
    from tdmr1_core.models.pipeline_files import is_on_hub

    tree: Tree = {}
    given: Tree = {}
    if flags.model:
        given["name"] = _absolute(flags.model)
    if flags.model_path is not None:
        given["path"] = str(flags.model_path.absolute())
    if flags.lora is not None:
        given["lora"] = str(flags.lora if is_on_hub(str(flags.lora)) else flags.lora.absolute())
    if given:
        tree["model"] = given
    if flags.rewards:
        tree["rewards"] = [parse_reward(each).tree if isinstance(each, str) else each for each in flags.rewards]
    if flags.prompts is not None:
        tree["prompts"] = {"train": _absolute(flags.prompts)}
    numbers = {"iterations": flags.iterations, "seed": flags.seed}
    return tree | {key: value for key, value in numbers.items() if value is not None}


def run_changes(flags: Flags) -> Tree:
    """The settings of a command line that change those of a run, with absolute paths. Presets and files are ignored."""
    from tdmr1_core.config_loading import merge, parse_assignments

    return dict(merge(_flag_tree(flags), _with_absolute_paths(merge(parse_assignments(flags.sets), flags.settings))))


def _with_absolute_paths(tree: Any, key: str = "") -> Any:
    """Settings in which every file that exists, and the file of every reward, has an absolute path."""
    from tdmr1_rewards.sources.source import parse_source

    if isinstance(tree, dict):
        return {name: _with_absolute_paths(value, str(name)) for name, value in tree.items()}
    if isinstance(tree, list):
        return [_with_absolute_paths(value) for value in tree]
    if not isinstance(tree, str) or not tree:
        return tree
    return str(parse_source(tree).absolute()) if key == "source" else _absolute(tree)


def _model_entry(name: str, own: Tree, extensions: Extensions) -> ModelEntry:
    path, lora, teacher = (_text_at(own, "model", key) for key in ("path", "lora", "teacher"))
    return extensions.models.get(
        name, path=Path(path) if path else None, lora=Path(lora) if lora else None, teacher=teacher
    )


def _absolute(name: str) -> str:
    """The absolute path of a file or folder that exists; a name is unchanged."""
    path = Path(name)
    return str(path.absolute()) if ("/" in name or path.suffix) and os.path.exists(path) else name


def _weight(text: str, reward: str, source: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise Tdmr1Error(
            f"--reward {reward!r}: the weight {text!r} is not a finite number",
            f"write it as `--reward {source}:0.5`",
            code="argument-invalid",
            values={"reward": reward, "weight": text},
        )
    return weight


def _default_preset(
    named: Sequence[Tree], entry: ModelEntry | None, finder: RewardFinder, *, distills: bool
) -> str | None:
    """The preset without --preset. An unknown reward has none here; it is reported with the other mistakes."""
    from tdmr1_core.config_loading import preset_names, source_of

    if entry is None:
        return None
    if distills:
        return entry.distill_preset
    first = next(iter(named), {"name": entry.default_reward} if entry.default_reward else None)
    if first is None:
        return entry.default_preset
    source = source_of(first)
    if entry.default_preset is not None:
        combined = f"{entry.default_preset}-{source}"
        return combined if combined in preset_names() else entry.default_preset
    try:
        return finder.find(source, _python(first)).spec.default_preset
    except Tdmr1Error:
        return None


def _no_reward(preset: str | None, extensions: Extensions) -> Tdmr1Error:
    """The error for a training without a reward. The hint names those that the preset is the default of."""
    registry = extensions.plugins.rewards
    specs = [entry.spec for entry in registry.entries()]
    fitting = [spec.name for spec in specs if preset and spec.default_preset == preset]
    names = fitting or list(registry.names())
    return Tdmr1Error(
        "a training needs a reward" + (f", and the preset {preset} names none" if fitting else ""),
        f"name one with --reward; {'these fit the preset' if fitting else 'registered'}: {', '.join(names)}",
        code="setting-invalid",
        values={"settings": ["rewards"], "preset": preset, "fitting": fitting},
    )


def _wrong_kind(found: str, wanted: str) -> Tdmr1Error:
    what = {"train": "a training with rewards", "distill": "a distillation"}
    return Tdmr1Error(
        f"these settings are for {what[found]}, not for {what[wanted]}",
        f"use `tdmr1 {found}`",
        code="wrong-kind",
        values={"found": found, "expected": wanted},
    )


def _text_at(tree: Mapping[str, Any], *path: str) -> str | None:
    """The text at a place of a tree that is not validated yet."""
    value: Any = tree
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, str) else None


def _python(reward: Mapping[str, Any]) -> Path | None:
    python = reward.get("python")
    return Path(python) if isinstance(python, str) else None
