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
from tdmr1_core.errors import Tdmr1Error, close_match, close_match_hint, join_hints

Tree = dict[str, Any]

FORMER_DEFAULTS: Tree = {
    "model.lora_init": "kaiming",
    "rollout.dpm_levels": "euler",
    "generator.ema_warmup": False,
}
"""Settings that the first versions did not have, with the value that the config.yaml of a run without them means.

A run names every setting, so a missing one is newer than the run. The value is what earlier versions did, so that the
run can be resumed to the same bits. `with_former_defaults` applies the table.
"""
FORMER_DEFAULTS_ONLY_WITH: dict[str, tuple[str, Any]] = {
    "rollout.dpm_levels": ("rollout.sampler", "dpm-solver++"),
}
"""Another setting and its value, without which a former default is not applied, because the setting has no effect."""
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
        text = path.read_text(encoding="utf-8")
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
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1} of {where}" if mark else where
        problem = getattr(error, "problem", None) or "unreadable"
        raise Tdmr1Error(
            f"{place} is not valid YAML: {problem}",
            "correct that line; in YAML, indentation and colons matter",
            code="config-unreadable",
            values={"file": where, "line": mark.line + 1 if mark else None},
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
    extended = tree.pop("extends", None)
    return tree if extended is None else merge(read_preset(str(extended)), tree)


def load_yaml(text: str) -> Any:
    """The value of a YAML text.

    Raises YAMLError also for a key that occurs twice, for impossible numbers and dates, and for endless nesting.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_keys(node)
        return loader.construct_document(node)
    except (ValueError, RecursionError) as error:
        raise yaml.MarkedYAMLError(problem=" ".join(str(error).split())) from error
    finally:
        loader.dispose()


def _check_keys(root: yaml.Node) -> None:
    """Raise YAMLError for a mapping that has the same key twice. PyYAML would use the last value."""
    waiting, seen = [root], set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:  # an alias
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif isinstance(node, yaml.MappingNode):
            waiting += [value for _, value in node.value]
            _check_mapping(node)


def _check_mapping(node: yaml.MappingNode) -> None:
    lines: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        name, line = (key.tag, str(key.value)), key.start_mark.line + 1
        if name in lines:
            where = "in the same line" if lines[name] == line else f"in lines {lines[name]} and {line}"
            raise yaml.MarkedYAMLError(
                problem=f"the key {key.value!r} occurs twice, {where}", problem_mark=key.start_mark
            )
        lines[name] = line


def parse_assignments(assignments: Iterable[str]) -> Tree:
    """`a.b=c` arguments as a tree; values are parsed as YAML. Raises Tdmr1Error if key or equals sign is missing."""
    tree: Tree = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        parts = key.strip().split(".")
        shown = repr(assignment if len(assignment) <= MAX_QUOTED else assignment[: MAX_QUOTED - 1] + "…")
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
            raise Tdmr1Error(
                f"the value of --set {shown} is not valid YAML",
                "quote it, as in 'a.b=\"text\"'",
                code="assignment-invalid",
                values={"assignment": assignment},
            ) from error
        node = tree
        for part in parts[:-1]:
            child = node.setdefault(part, {})
            if not isinstance(child, dict):
                raise Tdmr1Error(
                    f"--set {shown} sets a part of a value that another --set replaces",
                    "remove one of the two",
                    code="assignment-invalid",
                    values={"assignment": assignment},
                )
            node = child
        node[parts[-1]] = parsed
    return tree


def merge(base: Any, over: Any) -> Any:
    """`over` merged into `base`: mappings merge key by key; a mapping with number keys changes items of a list."""
    if isinstance(base, dict) and isinstance(over, dict):
        return {**base, **{key: merge(base.get(key), value) for key, value in over.items()}}
    if isinstance(base, list) and isinstance(over, dict) and all(str(key).isdigit() for key in over):
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
        raise _as_error(error) from error


def _as_error(error: ValidationError) -> Tdmr1Error:
    """All problems of a validation as one error, with close matches for unknown keys in the hint."""
    problems, hints = [], []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            problems.append(f"{where} is not a setting")
            hints.append(_setting_hint(item["loc"]))
        elif item["type"] == "value_error":
            problems.append(str(item["ctx"]["error"]) if "ctx" in item else item["msg"])
        else:
            problems.append(f"{where}: {item['msg'][0].lower()}{item['msg'][1:]} (got {_shown(item['input'])[:60]})")
    hint = join_hints(*hints) or "run `tdmr1 config show` for all settings and their meaning"
    start = "" if len(problems) == 1 else f"{len(problems)} settings are wrong: "
    unknown = all(item["type"] == "extra_forbidden" for item in error.errors())
    names = list(dict.fromkeys(_setting_name(item["loc"]) for item in error.errors()))
    code = "setting-unknown" if unknown else "setting-invalid"
    return Tdmr1Error(start + "; ".join(problems), hint, code=code, values={"settings": names, "problems": problems})


def _setting_hint(location: Sequence[int | str]) -> str:
    """The hint for an unknown setting: the most similar one of its section, or settings of that name elsewhere."""
    *parents, last = location
    name, above = str(last), "".join(f"{part}." for part in parents)
    known = _fields_at(RunConfig, parents)
    settings = [setting for setting, *_ in describe()]
    if "." in name and above + name in settings:
        return f"in YAML, write {name!r} as nested keys: {name.replace('.', ': {', 1)}: …}}"
    match = close_match(name, known)
    if match is not None:
        return f"did you mean {above + match!r}?"
    elsewhere = [setting for setting in settings if setting.rpartition(".")[2] == name]
    if elsewhere:
        return f"did you mean {' or '.join(map(repr, elsewhere))}?"
    return f"known: {', '.join(sorted(known))}"


def _setting_name(location: Sequence[int | str]) -> str:
    """The dotted name of a setting. Pydantic appends the member of a union that failed; that part is omitted."""
    parts = list(location)
    while len(parts) > 1 and not isinstance(parts[-1], int):
        try:
            _fields_at(RunConfig, parts[:-1])
            break
        except (StopIteration, KeyError):  # the parent is a setting, not a section
            parts.pop()
    return ".".join(map(str, parts))


def _shown(value: Any) -> str:
    """A value as JSON, or its repr if it is not JSON."""
    try:
        return json.dumps(value, default=str)
    except (ValueError, TypeError):
        return repr(value)


def _fields_at(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """The field names of the section that a location in the tree leads to."""
    section: Any = model
    for part in location:
        if isinstance(part, int):
            continue
        kinds = _kinds(section.model_fields[part].annotation)
        section = next(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel))
    return list(section.model_fields)


def _kinds(annotation: Any) -> Iterator[Any]:
    """An annotation and the annotations inside it: `tuple[RewardConfig, ...] | None` contains RewardConfig."""
    yield annotation
    for part in getattr(annotation, "__args__", ()):
        yield from _kinds(part)


def dump(config: RunConfig) -> Tree:
    """The resolved settings as plain data."""
    return config.model_dump(mode="json")


def fingerprint(config: RunConfig) -> str:
    """The first 16 hex digits of the SHA-256 of the resolved settings."""
    return hashlib.sha256(json.dumps(dump(config), sort_keys=True).encode()).hexdigest()[:16]


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
