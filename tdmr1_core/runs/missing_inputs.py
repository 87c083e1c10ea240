"""Finds the external inputs of a run that do not exist here, such as after the run folder was moved to another machine.

All of them are named together, each with the setting that has its path. Nothing is imported or loaded, and the run
folder is not changed.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.machinery import PathFinder
from pathlib import Path

from tdmr1_core.config import RewardConfig, RunConfig
from tdmr1_core.durable_files import check_writable
from tdmr1_core.errors import Tdmr1Error, warn
from tdmr1_core.models.pipeline_files import family_of, is_hub_id, is_on_hub
from tdmr1_core.models.registry import SAME, ModelEntry
from tdmr1_core.plugins import Extensions
from tdmr1_core.preflight.option_paths import leaves, listed_rewards, path_in
from tdmr1_core.prompts.sets import HUB, PROMPT_SETS, companion_file
from tdmr1_core.runs.checkpoints.run_config import EVALUATIONS, Header, read_header
from tdmr1_rewards.calling import session
from tdmr1_rewards.calling.reference import reference_of, validated_options
from tdmr1_rewards.registry import RewardRegistry
from tdmr1_rewards.sources.source import Source, parse_source
from tdmr1_rewards.texts.redaction import HIDDEN, complete, redacted_places


@dataclass(frozen=True)
class Needed:
    """What a command needs in addition to the base model. `rewards` are pairs of a place in the settings and a reward.

    `start` is the few-step LoRA that the run started from; `cache` is the folder of encoded prompts.
    """

    start: bool = False
    teacher: bool = False
    prompts: bool = False
    cache: bool = False
    rewards: Sequence[tuple[str, RewardConfig]] = ()


@dataclass(frozen=True)
class Missing:
    """An input that does not exist: the setting that names it, what it is, its path or name, and how to correct it.

    `required` is False for a text among the options of a reward that named a file at the start of the run: only the
    reward knows whether it still needs the file.
    """

    setting: str
    what: str
    path: str
    fix: str
    required: bool = True

    def __str__(self) -> str:
        return f"{self.what} {self.path} ({self.setting})"


class MissingSecret(Missing):
    """A secret, which a run does not store."""


class MissingInputs(Tdmr1Error):
    """The error that names all missing inputs of a run. It is printed completely, however long it is."""

    is_list = True


def needed_by_resume(config: RunConfig) -> Needed:
    """A resume needs everything that the settings name."""
    return Needed(True, True, True, True, listed_rewards(config))


def needed_by_evaluation(
    config: RunConfig, registry: RewardRegistry, named: Collection[str] | None, *, prompts: bool
) -> Needed:
    """What `tdmr1 evaluate` needs: the rewards that score evaluations, or those `named` that take the run's settings.

    `prompts` is whether those of the run are used.
    """
    listed = listed_rewards(config)
    trained = [(place, reward) for place, reward in listed if place.startswith("rewards.")]
    own = [(place, reward) for place, reward in listed if place.startswith("evaluation.")] or trained
    if named is not None:
        rewards = list({each[1].name: each for each in (*trained, *own) if each[1].name in named}.values())
    else:
        rewards = [(place, reward) for place, reward in own if _evaluates(reward, registry)]
        rewards = rewards or [(place, reward) for place, reward in listed if place.startswith("guard.")]
    return Needed(start=True, teacher=True, prompts=prompts, rewards=rewards)


def listed_trained(config: RunConfig, registry: RewardRegistry) -> list[tuple[str, RewardConfig]]:
    """The trained rewards that need no people, with their places in the settings."""
    listed = listed_rewards(config)
    return [(place, each) for place, each in listed if place.startswith("rewards.") and _evaluates(each, registry)]


def _evaluates(reward: RewardConfig, registry: RewardRegistry) -> bool:
    """Whether a reward may score evaluations. One that is not registered may."""
    name = reward.source or reward.name
    return name not in registry.names() or registry.get(name).spec.evaluates


def check_inputs(folder: Path, config: RunConfig, extensions: Extensions, needed: Needed) -> None:
    """Raise a MissingInputs error that names all needed inputs of a run that do not exist.

    If none of them is required for certain, they are a warning. Raises another Tdmr1Error for rewards that are objects
    of a Python program, which this process does not have.
    """
    _check_session(folder, needed)
    missing = find_missing(folder, config, extensions, needed)
    if not any(each.required for each in missing):
        for each in missing:
            warn(f"{each} does not exist any more", code="file-missing", setting=each.setting, path=each.path)
        return
    secrets = _assignments(each for each in missing if isinstance(each, MissingSecret))
    settings = _assignments(each for each in missing if not isinstance(each, MissingSecret))
    them = "it, or name its new place" if len(missing) == 1 else "them, or name their new places"
    hints = [f"restore {them}: {settings}"] if settings else []
    hints += [f"export the secret as an environment variable NAME, and add {secrets}"] if secrets else []
    hints += [each.fix for each in missing if "=" not in each.fix]
    count = "1 input" if len(missing) == 1 else f"{len(missing)} inputs"
    raise MissingInputs(
        f"{count} of the run {folder} cannot be found: {'; '.join(map(str, missing))}",
        "; ".join(dict.fromkeys(hints)),
        code="file-missing",
        values={"run": str(folder), "missing": [asdict(each) for each in missing]},
    )


def _check_session(folder: Path, needed: Needed) -> None:
    """Raise Tdmr1Error if a reward is an object of a Python program that this process does not have."""
    names = [name for _, reward in needed.rewards if (name := session.name_in(reward.source)) is not None]
    absent = list(dict.fromkeys(name for name in names if not session.is_provided(name)))
    if absent:
        listed = ", ".join(absent)
        given = listed if len(absent) == 1 else f"[{listed}]"
        call = f"train(resume={str(folder)!r}, reward={given})"
        if not needed.cache:  # an evaluation
            given = ", ".join(f"{name!r}: {name}" for name in absent)
            call = f"TrainedRun({str(folder)!r}, rewards={{{given}}}).evaluate()"
        raise session.absent(*absent, hint=f"use Python: tdmr1_core.{call}")


def _assignments(missing: Iterable[Missing]) -> str:
    return " ".join(f"--set {shlex.quote(each.fix)}" for each in missing if "=" in each.fix)


def missing_secrets(rewards: Sequence[tuple[str, RewardConfig]]) -> list[MissingSecret]:
    """The secrets of rewards that a run does not store; `path` is the text in which they are missing."""
    return [
        MissingSecret(setting, "a secret, which a run does not store:", text, f"{setting}={complete(text, variable)}")
        for place, reward in rewards
        for setting, text in redacted_places({"source": reward.source, "options": reward.options}, place)
        for variable in ["env:NAME" if HIDDEN.fullmatch(text) else "${NAME}"]
    ]


def find_missing(folder: Path, config: RunConfig, extensions: Extensions, needed: Needed) -> list[Missing]:
    """All needed inputs of a run that do not exist, in the order of the settings."""
    header = read_header(folder)
    entry = _entry(config, extensions)
    missing = list(_missing_model(config, extensions, entry, needed, header))
    missing += missing_secrets(needed.rewards)
    for place, reward in needed.rewards:
        missing += _missing_reward(place, reward, extensions.plugins.rewards, header)
    if needed.prompts:
        missing += _missing_prompts(config, entry, header)
    if needed.cache:
        missing += _missing_cache(config)
    return missing


def _entry(config: RunConfig, extensions: Extensions) -> ModelEntry | None:
    """The model entry as registered; None for a model that is not registered or cannot be used."""
    if config.model.name not in extensions.models.names:
        return None
    try:
        return extensions.models.get(config.model.name)
    except Tdmr1Error:  # reported when the model is looked up
        return None


def _missing_model(
    config: RunConfig, extensions: Extensions, entry: ModelEntry | None, needed: Needed, header: Header
) -> Iterator[Missing]:
    model, package = config.model, f" ({header.package})" if header.package else ""
    registered = model.name in extensions.models.names
    base = str(model.path or (entry.base if entry else model.name))
    setting = "model.path" if model.path or registered else "model.name"
    if not registered and "/" not in model.name:
        hint = f"install the package that registers the model {model.name}{package}"
        yield Missing("model.name", "the registered model", model.name, hint)
    elif (model.path or entry or not registered) and not os.path.exists(base) and not is_hub_id(base):
        yield Missing(setting, "the base model", base, "model.path=NEW_FOLDER")
    elif header.package and not _has_known_family(base):
        yield Missing(setting, "the package of the model family", header.package, f"install {header.package}")
    lora = str(model.lora) if model.lora else entry.lora if entry else None
    if needed.start and config.kind == "train" and lora and not os.path.exists(lora) and not is_on_hub(lora):
        yield Missing("model.lora", "the few-step LoRA", lora, f"model.lora=NEW_FOLDER/{Path(lora).name}")
    teacher = model.teacher or (entry.teacher if entry else SAME)
    if needed.teacher and teacher != SAME and not os.path.exists(teacher) and not is_hub_id(teacher):
        yield Missing("model.teacher", "the teacher", teacher, "model.teacher=NEW_FOLDER")


def _has_known_family(base: str) -> bool:
    """Whether the family of a pipeline is registered. True if this cannot be found out here."""
    try:
        family_of(base)
    except Tdmr1Error as error:
        return error.code != "model-unsupported"
    return True


def _missing_reward(place: str, reward: RewardConfig, registry: RewardRegistry, header: Header) -> Iterator[Missing]:
    try:
        source = parse_source(reward.source or reward.name)
    except Tdmr1Error:  # reported when the reward is looked up
        return
    name = f"of the reward {reward.name}"
    setting, new = f"{place}.source", f"NEW_FOLDER/{source.path.name}:{source.attribute}"
    if source.kind == "file" and not source.path.is_file():
        yield Missing(setting, f"the file {name}", source.place, f"{setting}={new}")
    if source.kind == "module" and reward.python is None and not _has_module(source):
        hint = f"install the package of {source.place}, or run the command in the folder that contains it"
        yield Missing(setting, f"the module {name}", source.place, hint)
    if source.kind == "registered" and source.place not in registry.names():
        package = header.rewards.get(f"{place.rpartition('.')[0]}.{reward.name}".removeprefix("rewards."))
        hint = f"install the package that registers the reward {source.place}{f' ({package})' if package else ''}"
        yield Missing(setting, "the registered reward", source.place, hint)
    if reward.python is not None and not reward.python.exists():
        setting = f"{place}.python"
        yield Missing(setting, f"the Python interpreter {name}", str(reward.python), f"{setting}=NEW_PYTHON")
    yield from _missing_options(place, reward, source, registry, header)


def _has_module(source: Source) -> bool:
    """Whether the package or module is installed, or is in the current folder. Nothing is imported."""
    top = source.place.partition(".")[0]
    return top in sys.modules or PathFinder.find_spec(top, [os.getcwd(), *sys.path]) is not None


def _missing_options(
    place: str, reward: RewardConfig, source: Source, registry: RewardRegistry, header: Header
) -> Iterator[Missing]:
    """Options that were paths at the start of the run, or that are declared as paths, and do not exist."""
    paths = {
        name: path
        for name, value in leaves(reward.options, f"{place}.options")
        if name in header.options and (path := path_in(value)) is not None
    }
    declared = _declared_paths(place, reward, source, registry)
    for name, path in (paths | declared).items():
        if not path.exists():
            what = f"the file or folder of an option of the reward {reward.name}"
            yield Missing(name, what, str(path), f"{name}=NEW", name in declared)


def _declared_paths(place: str, reward: RewardConfig, source: Source, registry: RewardRegistry) -> dict[str, Path]:
    """The options of a registered reward that its options model declares as paths, by dotted setting."""
    if source.kind != "registered" or source.place not in registry.names() or reward.python is not None:
        return {}
    try:
        registered = registry.get(source.place)
        if registered.spec.options is None:
            return {}
        options = validated_options(reference_of(registered.spec, reward.options), registered)
    except Tdmr1Error:  # reported when the reward is looked up
        return {}
    given = leaves(options.model_dump(include=set(reward.options)), f"{place}.options")
    return {name: value for name, value in given if isinstance(value, Path)}


def _missing_prompts(config: RunConfig, entry: ModelEntry | None, header: Header) -> Iterator[Missing]:
    domains = [entry.domain] if entry else list(PROMPT_SETS)
    known = {name for domain in domains for name in PROMPT_SETS.get(domain, ())}
    train, evaluate = config.prompts.train, config.prompts.evaluate
    for setting, what, name in (
        ("prompts.train", "the training prompts", train),
        ("prompts.evaluate", "the prompts of evaluations", evaluate),
    ):
        is_path = name and name not in known and "/" in name and not name.startswith(HUB)
        if name and is_path and not os.path.exists(name):
            yield Missing(setting, what, name, f"{setting}=NEW_FOLDER/{Path(name).name}")
    in_file = train and train not in known and not train.startswith(HUB)
    if evaluate is None and train and in_file and EVALUATIONS in header.prompts:
        test = companion_file(train)  # the run began with a file test… beside its file train…
        if test is None or not test.exists():
            place, name = (str(test), test.name) if test else (f"beside {train}", "FILE")
            yield Missing(
                "prompts.evaluate", "the prompts of evaluations", place, f"prompts.evaluate=NEW_FOLDER/{name}"
            )


def _missing_cache(config: RunConfig) -> Iterator[Missing]:
    """A folder of encoded prompts that neither exists nor can be created."""
    cache = config.memory.prompt_cache
    if cache is None or cache.exists():
        return
    try:
        check_writable(cache)
    except Tdmr1Error:
        setting = "memory.prompt_cache"
        yield Missing(setting, "the folder of encoded prompts", str(cache), f"{setting}=NEW_FOLDER")
