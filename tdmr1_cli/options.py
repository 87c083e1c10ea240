"""The options that verbs share, and how they become one RunConfig.

Layers, weakest first: preset, CONFIG.yaml, flags, --set. The preset is the one of --preset, else the model's own for
the first reward (`tiny-human`), else the model's own (`tiny`), else the first reward's own. A CONFIG.yaml changes
nothing about that: it changes the settings it names, and what it leaves open is what it would be without it. `--preset
none` starts from the published defaults instead. The config.yaml of a run names every setting, so it means the same
under any preset.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from tdmr1_core.errors import Tdmr1Error

if TYPE_CHECKING:
    from tdmr1_core.config import RunConfig
    from tdmr1_core.models.registry import ModelEntry
    from tdmr1_core.plugins import Extensions

ConfigArgument = Annotated[Path | None, typer.Argument(metavar="CONFIG.yaml", help="Settings to start from.")]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", metavar="MODEL", help="A model (`tdmr1 models list`), a pipeline directory or a hub id."),
]
RewardOption = Annotated[
    list[str] | None,
    typer.Option(
        "--reward",
        metavar="[NAME=]SOURCE[:WEIGHT]",
        help="A reward of `tdmr1 rewards list`, file.py:fn, package.module:fn or remote:URL; may be repeated.",
    ),
]
PresetOption = Annotated[
    str | None,
    typer.Option("--preset", metavar="PRESET", help="Packaged settings (`tdmr1 config presets`), or none."),
]
PromptsOption = Annotated[
    str | None, typer.Option("--prompts", metavar="SET|FILE", help="Training prompts: a set, a .txt or a .jsonl file.")
]
IterationsOption = Annotated[int | None, typer.Option("--iterations", metavar="N", help="Length of the whole run.")]
SeedOption = Annotated[int | None, typer.Option("--seed", metavar="N", help="Seed of every random draw.")]
OutputOption = Annotated[
    Path | None,
    typer.Option("--output", metavar="DIR", help="The run folder; runs/<model>-<rewards>-<time> if left out."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Any setting (`tdmr1 config show`); may be repeated."),
]
ModelPathOption = Annotated[
    Path | None,
    typer.Option("--model-path", metavar="DIR", help="Where the base pipeline lies, if not where it usually is."),
]
LoraOption = Annotated[
    Path | None,
    typer.Option("--lora", metavar="FILE", help="The few-step LoRA to start from, in place of the model's own."),
]
ResumeOption = Annotated[
    Path | None, typer.Option("--resume", metavar="RUN", help="Continue this run folder at its latest checkpoint.")
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Print the settings and what `tdmr1 plan` says of them; load no weights.")
]
ProcessesOption = Annotated[
    int | None,
    typer.Option("--processes", metavar="N", min=1, help="Split the groups over N processes, a GPU each."),
]
QuietOption = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]

DEFAULT_MODEL = "tiny-tdm"
NO_PRESET = "none"
STAND_IN_REWARD = "object_count"
"""Named where a config must name a reward that is never asked."""
RUN_HEADER = "tdmr1"
"""The key of a run's config.yaml that holds versions instead of settings."""

Kind = Literal["train", "distill"]
Result = TypeVar("Result")
Tree = dict[str, Any]


@dataclass(frozen=True)
class Flags:
    """The settings of a command line, as typed."""

    config: Path | None = None
    model: str | None = None
    rewards: Sequence[str] = ()
    preset: str | None = None
    prompts: str | None = None
    iterations: int | None = None
    seed: int | None = None
    sets: Sequence[str] = ()
    model_path: Path | None = None
    lora: Path | None = None


@dataclass(frozen=True)
class TypedReward:
    """One `--reward`: its name in metrics, where it comes from if not from that name, and its weight."""

    name: str
    source: str | None
    weight: float

    @property
    def tree(self) -> Tree:
        """The settings that it names."""
        source = {} if self.source is None else {"source": self.source}
        return {"name": self.name, "weight": self.weight, **source}


@dataclass(frozen=True)
class Settings:
    """A checked config, the model it names and the preset it started from."""

    config: RunConfig
    entry: ModelEntry
    preset: str | None


@dataclass
class Problems:
    """Mistakes that are gathered in order to be told together."""

    found: list[Tdmr1Error] = field(default_factory=list)

    def attempt(self, action: Callable[[], Result]) -> Result | None:
        """The action's result, or None after a mistake, which is kept."""
        try:
            return action()
        except Tdmr1Error as error:
            self.found.append(error)
            return None

    def tell(self) -> None:
        """Raise the one mistake, or all of them as one."""
        if len(self.found) == 1:
            raise self.found[0]
        if self.found:
            hints = dict.fromkeys(error.hint for error in self.found if error.hint)
            messages = "; ".join(error.message for error in self.found)
            raise Tdmr1Error(f"{len(self.found)} things are wrong: {messages}", "; ".join(hints) or None)


def resolve_settings(flags: Flags, kind: Kind | None, extensions: Extensions, *, rewarded: bool = True) -> Settings:
    """The layers as one config, with model, rewards and preset looked up; torch is not needed for it.

    `kind` is what the verb does; None takes it from the settings. Where no reward is asked, `rewarded` False, none need
    be named. Raises Tdmr1Error that names every mistake.
    """
    from tdmr1_core.config_loading import merge, parse_assignments, read_preset, resolve

    problems = Problems()
    file = problems.attempt(lambda: read_config(flags.config))
    sets = problems.attempt(lambda: parse_assignments(flags.sets))
    typed = problems.attempt(lambda: _flag_tree(flags))
    named = _remembering(typed or {}, file or {})
    own: Tree = problems.attempt(lambda: merge(merge(file or {}, named), sets or {})) or {}
    name = _text_at(own, "model", "name") or DEFAULT_MODEL
    path, lora, teacher = (_text_at(own, "model", key) for key in ("path", "lora", "teacher"))
    entry = problems.attempt(
        lambda: extensions.models.get(
            name, path=Path(path) if path else None, lora=Path(lora) if lora else None, teacher=teacher
        )
    )
    default_reward = entry.default_reward if entry else STAND_IN_REWARD
    distils = kind == "distill" or (kind is None and own.get("kind") == "distill")
    default_preset = _default_preset(own, entry, extensions)
    if distils:
        default_preset = entry.distill_preset if entry else None
    if entry is not None and not distils and entry.needs_lora and entry.lora is None:
        problems.found.append(entry.missing_lora())
    preset_name = flags.preset or default_preset
    preset = problems.attempt(lambda: read_preset(preset_name)) if preset_name not in (None, NO_PRESET) else {}
    base: Tree = {"model": {"name": name}, "kind": kind or "train"}
    if not rewarded:
        default_reward = default_reward or STAND_IN_REWARD
    if default_reward and not distils:
        base["rewards"] = [{"name": default_reward}]
    preset = merge(merge(base, preset or {}), entry.settings if entry else {})
    file = _remembering(file or {}, preset)
    typed = _remembering(typed or {}, merge(preset, file))
    layers = [preset, _fitting_evaluation(preset, own), file, typed, sets or {}]
    config = problems.attempt(lambda: resolve(layers))
    if config is not None:
        rewards = (*config.rewards, *config.evaluation.rewards, *(config.guard.rewards or ()))
        sources = [(reward.source or reward.name, reward.python) for reward in rewards]
        _check_rewards(sources, extensions, problems)
        if kind is not None and config.kind != kind:
            problems.found.append(_wrong_kind(config.kind, kind))
    else:
        sources = [(_source(reward), _python(reward)) for reward in _named(own.get("rewards"))]
        _check_rewards(sources, extensions, problems)
    problems.tell()
    assert config is not None
    assert entry is not None
    from tdmr1_core.preflight.absolute_paths import make_absolute

    return Settings(make_absolute(config, extensions), entry, preset_name if preset_name != NO_PRESET else None)


def read_config(path: Path | None) -> Tree:
    """The settings in a YAML file, which may be the config.yaml of a run; none without a file."""
    from tdmr1_core.config_loading import read_file

    if path is None:
        return {}
    return {key: value for key, value in read_file(path).items() if key != RUN_HEADER}


def _flag_tree(flags: Flags) -> Tree:
    """The named flags as settings. Paths are made absolute: a run is continued from anywhere."""
    tree: Tree = {}
    name = _absolute(flags.model) if flags.model else None
    model = {"name": name, "path": flags.model_path, "lora": flags.lora}
    given = {key: str(value.absolute()) if isinstance(value, Path) else value for key, value in model.items() if value}
    if given:
        tree["model"] = given
    if flags.rewards:
        tree["rewards"] = [parse_reward(text).tree for text in flags.rewards]
    if flags.prompts is not None:
        tree["prompts"] = {"train": _absolute(flags.prompts)}
    numbers = {"iterations": flags.iterations, "seed": flags.seed}
    return tree | {key: value for key, value in numbers.items() if value is not None}


def _remembering(tree: Tree, below: Tree) -> Tree:
    """The settings, in which a reward keeps what the layers below say of it and these leave open."""
    former = {reward["name"]: reward for reward in _named(below.get("rewards"))}
    if not isinstance(tree.get("rewards"), list):
        return tree
    rewards = [
        {**former.get(reward["name"], {}), **reward} if _named([reward]) else reward for reward in tree["rewards"]
    ]
    return {**tree, "rewards": rewards}


def _absolute(name: str) -> str:
    """A path that is there as an absolute one; a name stays as it is."""
    path = Path(name)
    return str(path.absolute()) if ("/" in name or path.suffix) and path.exists() else name


def parse_reward(text: str) -> TypedReward:
    """`[NAME=]SOURCE[:WEIGHT]` taken apart; a file's path is made absolute, since a run is continued from anywhere.

    A port or a function is no weight: that is a number after the source. Raises Tdmr1Error for a weight that is none,
    and for what cannot be a source (`tdmr1_rewards.sources.source`).
    """
    from tdmr1_rewards.sources import source as sources

    form = rf"(?:(?P<name>[A-Za-z_][\w-]*)=)?(?P<source>{sources.PATTERN})(?::(?P<weight>[^:/]*))?"
    match = re.fullmatch(form, text)
    if match is None:
        raise Tdmr1Error(f"--reward {text!r} is not understood", sources.FORMS)
    source, name = sources.parse_source(match["source"]).absolute(), match["name"]
    weight = 1.0 if match["weight"] is None else _weight(match["weight"], text, match["source"])
    if source.kind == "registered" and name in (None, source.place):
        return TypedReward(source.place, None, weight)
    return TypedReward(name or source.name, str(source), weight)


def _weight(text: str, reward: str, source: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise Tdmr1Error(f"--reward {reward!r}: {text!r} is not a number", f"write it as `--reward {source}:0.5`")
    return weight


def _default_preset(own: Tree, entry: ModelEntry | None, extensions: Extensions) -> str | None:
    if entry is None:
        return None
    from tdmr1_core.config_loading import preset_names
    from tdmr1_rewards.sources.source import find_reward

    first = next(iter(_named(own.get("rewards"))), {"name": entry.default_reward} if entry.default_reward else None)
    if first is None:
        return entry.default_preset
    if entry.default_preset is not None:
        together = f"{entry.default_preset}-{_source(first)}"
        return together if together in preset_names() else entry.default_preset
    try:
        return find_reward(extensions.plugins.rewards, _source(first), _python(first)).spec.default_preset
    except Tdmr1Error:
        return None  # an unknown reward is told with the other mistakes


def _fitting_evaluation(preset: Tree, own: Tree) -> Tree:
    """Of a preset's evaluation rewards, those that judge what is trained; none where they leave out some of that."""
    judges = _named((preset.get("evaluation") or {}).get("rewards"))
    trained = set(map(_source, _named(own.get("rewards")) or _named(preset.get("rewards"))))
    fitting = [judge for judge in judges if _source(judge) in trained]
    return {"evaluation": {"rewards": fitting if trained == set(map(_source, fitting)) else []}} if judges else {}


def _check_rewards(sources: Sequence[tuple[str, Path | None]], extensions: Extensions, problems: Problems) -> None:
    from tdmr1_rewards.sources.source import find_reward

    for source in dict.fromkeys(sources):
        problems.attempt(lambda source=source: find_reward(extensions.plugins.rewards, *source))  # type: ignore[misc]


def _wrong_kind(found: str, wanted: str) -> Tdmr1Error:
    what = {"train": "a training with rewards", "distill": "a distillation"}
    return Tdmr1Error(f"these settings are for {what[found]}, not {what[wanted]}", f"use `tdmr1 {found}`")


def _text_at(tree: Mapping[str, Any], *path: str) -> str | None:
    """The text at a place of a tree that is not checked yet."""
    value: Any = tree
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, str) else None


def _named(rewards: Any) -> list[Tree]:
    """Those of unchecked rewards that have a name."""
    listed = rewards if isinstance(rewards, list) else []
    return [reward for reward in listed if isinstance(reward, dict) and isinstance(reward.get("name"), str)]


def _source(reward: Mapping[str, Any]) -> str:
    """Where a reward with a name comes from."""
    return str(reward.get("source") or reward["name"])


def _python(reward: Mapping[str, Any]) -> Path | None:
    """The interpreter of another environment that an unchecked reward runs in."""
    python = reward.get("python")
    return Path(python) if isinstance(python, str) else None
