"""Merges presets, YAML files and `--set a.b=c` into one validated RunConfig, and reports all mistakes at once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from tdmr1_core.config import RunConfig
from tdmr1_core.errors import Tdmr1Error, close_match_hint
from tdmr1_core.settings.mistakes import as_error
from tdmr1_core.settings.yaml_text import explain, load_yaml
from tdmr1_rewards.errors import shorten
from tdmr1_rewards.texts import documents
from tdmr1_rewards.texts.redaction import redact_tree, remember_tree

Tree = dict[str, Any]

FORMER_DEFAULTS: Tree = {
    "model.lora_init": "kaiming",
    "model.ignore_text_encoder_lora": False,
    "memory.attention": "auto",
    "batch.prompts": "uniform",
    "batch.teaching_floor": 0.1,
    "memory.text_encoders": "device",
    "memory.prompt_cache_gb": 8.0,
    "memory.lora": "peft",
    "rollout.dpm_levels": "euler",
    "rollout.sigmas": None,
    "generator.ema_warmup": False,
    "generator.joint_huber": False,
    "evaluation.images_per_prompt": None,
    "processes_timeout": 15.0,
}
"""Settings that the first versions did not have, with the value that the config.yaml of a run without them means.

A run names every setting, so a missing one is newer than the run. The value is what earlier versions did, so that the
run can be resumed to the same bits. `with_former_defaults` applies the table.
"""
FORMER_DEFAULTS_ONLY_WITH: dict[str, tuple[str, Any]] = {
    "rollout.dpm_levels": ("rollout.sampler", "dpm-solver++"),
    "generator.joint_huber": ("generator.loss", "huber"),
}
"""Another setting and its value, without which a former default is not applied, because the setting has no effect."""
RUN_TOKEN = "${run}"
"""The start of a path inside the run folder, in the files of a run."""
MAX_QUOTED = 80
"""Characters of an argument that a message quotes."""


def preset_names() -> list[str]:
    """The packaged presets, sorted."""
    folder = resources.files("tdmr1_core") / "presets"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def read_preset(name: str) -> Tree:
    """A packaged preset as a tree. Raises Tdmr1Error for an unknown name."""
    if name not in preset_names():
        raise Tdmr1Error(
            f"there is no preset {name!r}",
            close_match_hint(name, preset_names()),
            code="preset-unknown",
            values={"name": name},
        )
    return _parse((resources.files("tdmr1_core") / "presets" / f"{name}.yaml").read_text(), f"preset {name}")


def read_file(path: Path) -> Tree:
    """A YAML file as a tree, merged over the preset that it `extends`.

    Raises Tdmr1Error if it cannot be read, is not a mapping, or extends an unknown preset.
    """
    try:
        text = documents.read_file(path).decode("utf-8")
    except documents.UnreadableDocument as error:
        raise Tdmr1Error(
            f"the settings file {path} cannot be read: {error}",
            "name a YAML file with settings",
            code="config-unreadable",
            values={"file": str(path)},
        ) from error
    except OSError as error:
        raise Tdmr1Error(
            f"the settings file {path} cannot be read: {error.strerror}",
            "check the path",
            code="config-unreadable",
            values={"file": str(path)},
        ) from error
    except UnicodeDecodeError as error:
        raise Tdmr1Error(
            f"the settings file {path} is not UTF-8 text (byte {error.start})",
            "save it as UTF-8 YAML",
            code="config-unreadable",
            values={"file": str(path), "byte": error.start},
        ) from error
    return _parse(text, str(path))


def _parse(text: str, where: str) -> Tree:
    try:
        tree = load_yaml(text)
    except yaml.YAMLError as error:
        problem, line = explain(error)
        place = where if line is None else f"line {line} of {where}"
        raise Tdmr1Error(
            f"{place} is not valid YAML: {problem}",
            "correct that line; in YAML, indentation and colons matter",
            code="config-unreadable",
            values={"file": where, "line": line},
        ) from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise Tdmr1Error(
            f"{where} contains a {type(tree).__name__}, not settings",
            "write `key: value` lines",
            code="config-unreadable",
            values={"file": where, "found": type(tree).__name__},
        )
    remember_tree(tree)
    extended = tree.pop("extends", None)
    return tree if extended is None else merge(read_preset(str(extended)), tree)


def parse_assignments(assignments: Iterable[str]) -> Tree:
    """`a.b=c` arguments as a tree; values are parsed as YAML.

    Raises Tdmr1Error if key or equals sign is missing, if a value is not YAML, and for two values of one setting.
    """
    tree: Tree = {}
    values: dict[tuple[str, ...], tuple[str, Any]] = {}
    """Every value with the assignment that it comes from."""
    for assignment in assignments:
        parsed = _parse_assignment(assignment)
        for path, value in _values_in(parsed):
            for former_path, (former, former_value) in values.items():
                shared = min(len(path), len(former_path))
                same = path == former_path and repr(value) == repr(former_value)
                if path[:shared] == former_path[:shared] and former != assignment and not same:
                    raise _set_twice(".".join(path[:shared]), former, assignment)
            values[path] = (assignment, value)
        tree = merge(tree, parsed)
    return tree


def nest_settings(settings: Mapping[str, Any]) -> Tree:
    """The settings of a Python program as a tree. A key may be dotted, and a value may be a mapping of settings.

    Raises Tdmr1Error for a key that is not a dotted name.
    """
    tree: Tree = {}
    for key, value in settings.items():
        if not isinstance(key, str) or not all(key.split(".")):
            raise Tdmr1Error(
                f"{key!r} is not the name of a setting",
                "write it like 'generator.learning_rate'",
                code="assignment-invalid",
                values={"assignment": str(key)},
            )
        tree = merge(tree, _nested(key, nest_settings(value) if isinstance(value, Mapping) else value))
    remember_tree(tree)
    return tree


def _parse_assignment(assignment: str) -> Tree:
    key, equals, value = assignment.partition("=")
    parts = key.strip().split(".")
    shown = repr(shorten(assignment, MAX_QUOTED))
    if not equals or not all(parts):
        raise Tdmr1Error(
            f"--set {shown} is not an assignment",
            "write it as `--set generator.learning_rate=1e-4`",
            code="assignment-invalid",
            values={"assignment": assignment},
        )
    try:
        parsed = load_yaml(value)
    except yaml.YAMLError as error:
        problem, _ = explain(error)
        raise Tdmr1Error(
            f"the value of --set {shown} is not valid YAML: {problem}",
            "quote it, as in 'a.b=\"text\"'",
            code="assignment-invalid",
            values={"assignment": assignment, "problem": problem},
        ) from error
    tree = _nested(".".join(parts), parsed)
    remember_tree(tree)
    return tree


def _values_in(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The values of nested tables, with their keys."""
    if not isinstance(tree, dict) or not tree:
        yield path, tree
        return
    for key, value in tree.items():
        name = str(int(key)) if str(key).isdecimal() else str(key)
        yield from _values_in(value, (*path, name))


def _set_twice(setting: str, former: str, latter: str) -> Tdmr1Error:
    quoted = [repr(shorten(each, MAX_QUOTED)) for each in (former, latter)]
    return Tdmr1Error(
        f"{setting} is set twice: --set {quoted[0]} and --set {quoted[1]}",
        "remove one of the two",
        code="assignment-invalid",
        values={"setting": setting, "assignments": [former, latter]},
    )


def merge(base: Any, over: Any) -> Any:
    """`over` merged into `base`: mappings merge key by key; a mapping with number keys changes items of a list."""
    if isinstance(base, dict) and isinstance(over, dict):
        return {**base, **{key: merge(base.get(key), value) for key, value in over.items()}}
    if isinstance(base, list) and isinstance(over, dict) and over and all(str(key).isdecimal() for key in over):
        changed = list(base)
        for key, value in over.items():
            if int(key) >= len(changed):
                raise Tdmr1Error(
                    f"there is no item {key} in a list of {len(changed)} items",
                    "items are counted from 0",
                    code="assignment-invalid",
                    values={"item": key, "length": len(changed)},
                )
            changed[int(key)] = merge(changed[int(key)], value)
        return changed
    return over


def with_former_defaults(tree: Tree) -> Tree:
    """The settings of a run's config.yaml, in which missing settings have the value of `FORMER_DEFAULTS`."""
    for name, value in FORMER_DEFAULTS.items():
        needed, wanted = FORMER_DEFAULTS_ONLY_WITH.get(name, (None, None))
        if needed is not None and _value_at(tree, needed) != wanted:
            continue
        if _value_at(tree, name) is _MISSING:
            tree = merge(tree, _nested(name, value))
    return tree


_MISSING = object()


def _value_at(tree: Any, name: str) -> Any:
    """The value of a dotted setting; _MISSING if it can be added; None below a value that is not a section."""
    for part in name.split("."):
        if not isinstance(tree, dict):
            return None
        if part not in tree:
            return _MISSING
        tree = tree[part]
    return tree


def _nested(name: str, value: Any) -> Tree:
    """The tree with a single dotted setting."""
    for part in reversed(name.split(".")):
        value = {part: value}
    return dict(value)


def keep_reward_settings(tree: Tree, below: Tree) -> Tree:
    """The settings, in which a reward keeps what lower layers set for a reward of that name."""
    former = {reward["name"]: reward for reward in named_rewards(below.get("rewards"))}
    if not isinstance(tree.get("rewards"), list):
        return tree
    rewards = [
        {**former.get(reward["name"], {}), **reward} if named_rewards([reward]) else reward
        for reward in tree["rewards"]
    ]
    return {**tree, "rewards": rewards}


def named_rewards(rewards: Any) -> list[Tree]:
    """The rewards that have a name, of a value that is not validated yet."""
    listed = rewards if isinstance(rewards, list) else []
    return [reward for reward in listed if isinstance(reward, dict) and isinstance(reward.get("name"), str)]


def fitting_evaluation(preset: Tree, named: Sequence[Tree]) -> Tree:
    """The evaluation rewards of a preset that score what is trained; none if they miss a trained reward.

    `named` are the rewards that the user names.
    """
    evaluated = named_rewards((preset.get("evaluation") or {}).get("rewards"))
    trained = set(map(source_of, named or named_rewards(preset.get("rewards"))))
    fitting = [reward for reward in evaluated if source_of(reward) in trained]
    covered = trained == set(map(source_of, fitting))
    return {"evaluation": {"rewards": fitting if covered else []}} if evaluated else {}


def source_of(reward: Mapping[str, Any]) -> str:
    """The source of a reward that is not validated yet."""
    return str(reward.get("source") or reward["name"])


def resolve(trees: Sequence[Tree]) -> RunConfig:
    """The settings of several trees; later ones override earlier ones. Raises one Tdmr1Error for all mistakes."""
    merged: Tree = {}
    for tree in trees:
        merged = merge(merged, tree)
    try:
        return RunConfig.model_validate(merged)
    except ValidationError as error:
        raise as_error(error) from error


def dump(config: RunConfig, run_folder: Path | None = None) -> Tree:
    """The resolved settings as plain data, without secrets.

    For a file in `run_folder`, paths inside that folder begin with `${run}`.
    """
    tree = redact_tree(config.model_dump(mode="json"))
    return tree if run_folder is None else dict(to_portable(tree, run_folder))


def compared(config: RunConfig) -> Tree:
    """The settings for a comparison: a secret equals any other one, and the environment variable that holds it."""
    return dict(redact_tree(config.model_dump(mode="json"), compared=True))


def to_portable(tree: Any, folder: Path) -> Any:
    """Settings in which paths inside a run folder begin with `${run}`."""
    return _replace_start(tree, str(folder.absolute()), RUN_TOKEN)


def from_portable(tree: Any, folder: Path) -> Any:
    """Settings in which `${run}` at the start of a path is replaced by a run folder."""
    return _replace_start(tree, RUN_TOKEN, str(folder.absolute()))


def _replace_start(tree: Any, start: str, other: str) -> Any:
    if isinstance(tree, dict):
        return {key: _replace_start(value, start, other) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_replace_start(value, start, other) for value in tree]
    inside = isinstance(tree, str) and (tree == start or tree.startswith(f"{start}/"))
    return other + tree.removeprefix(start) if inside else tree


def fingerprint(config: RunConfig) -> str:
    """The first 16 hex digits of the SHA-256 of the resolved settings."""
    return hashlib.sha256(json.dumps(compared(config), sort_keys=True).encode()).hexdigest()[:16]


def describe(section: type[BaseModel] = RunConfig, prefix: str = "") -> list[tuple[str, str, Any, str]]:
    """Every setting as (dotted name, type, default, meaning), in the order of the tree."""
    rows: list[tuple[str, str, Any, str]] = []
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            rows += describe(kind, f"{prefix}{name}.")
        else:
            shown = getattr(kind, "__name__", str(kind)) if isinstance(kind, type) else str(kind)
            rows.append(
                (
                    prefix + name,
                    shown.replace("typing.", ""),
                    field.get_default(call_default_factory=True),
                    field.description or "",
                )
            )
    return rows
