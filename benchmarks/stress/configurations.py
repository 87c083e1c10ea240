"""Random valid configurations over every setting: each is trained, then reported or resumed."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from operator import itemgetter
from typing import Any, Literal, get_args, get_origin

import yaml
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from stress.case import Case
from stress.scheduler import Part

TRIES = 30
"""Drawn configurations of an item until one is valid."""
RESUMED = 6
"""Each sixth run is resumed for another iteration."""
PROMPTS = [None, "count", "count-held-out", "ordered-pairs", "words", "geneval"]
REWARDS = ("object_count", "jpeg_size")
NAMED: dict[str, list[Any]] = {
    "rollout.sigmas": [None, [1, 0.9, 0.75, 0.5, 0], [0.9, 0.4, 0]],
    "tracking": [None, ["tensorboard"]],
    "tracking_project": ["tdmr1", "another project"],
    "tracking_tags": [[], ["first", "second"]],
    "kind": ["train"],
    "iterations": [1, 1, 2],
    "threads": [1],
    "model.name": ["tiny-tdm", "tiny-tdm", "tiny-pairs-tdm", "tiny-words-tdm"],
    "model.path": [None],
    "model.lora": [None],
    "model.teacher": [None, "same"],
    "model.device": ["cpu", "auto"],
    "model.height": [None, 24, 16, 32],
    "model.width": [None, 24, 32],
    "rewards.name": list(REWARDS),
    "rewards.device": [None, "cpu"],
    "rewards.python": [None],
    "rewards.source": [None],
    "rewards.options": [{}],
    "rewards.timeout": [None, "none", 60.0],
    "prompts.train": PROMPTS,
    "prompts.evaluate": PROMPTS,
    "batch.groups": [1, 2, 3, 4],
    "batch.group_size": [2, 3],
    "evaluation.images": [1, 2, 4],
    "evaluation.images_per_prompt": [None, 1, 2],
    "memory.compile": [False],
    "memory.prompt_cache": [None, "cache"],
    "rollout.steps": [None, 1, 2, 3, 5],
    "fake.updates": [1, 2],
    "surrogate.updates": [1, 3],
    "timesteps.per_iteration": [1, 2],
}
"""Values of the settings whose type does not limit them to what is quick and exists everywhere."""
BASE = {
    "iterations": 1,
    "threads": 1,
    "model": {"name": "tiny-tdm"},
    "rewards": [{"name": "object_count"}],
    "batch": {"groups": 2, "group_size": 2},
    "evaluation": {"images": 2},
    "timesteps": {"per_iteration": 1},
    "saving": {"checkpoint_every": 1, "samples_every": 0, "tensorboard": False},
}


def run(case: Case) -> None:
    """Train with a random valid configuration; then resume or report the run."""
    tree, drawn = _valid(case)
    path, folder = case.folder / "config.yaml", case.folder / "run"
    if tree.get("memory", {}).get("prompt_cache") is not None:
        tree["memory"]["prompt_cache"] = str(case.folder / tree["memory"]["prompt_cache"])
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    case.notes = [] if drawn == 1 else ["drawn again, because it was not valid"]
    trained = case.tdmr1("train", path, "--output", folder)
    if trained.code in (0, 1):
        case.check_saved(folder, tree["iterations"])
        if case.number % RESUMED == 0:
            case.tdmr1("train", "--resume", folder, "--iterations", tree["iterations"] + 1)
        case.tdmr1("report", folder, "--json", allowed=[0])
    case.faults = [f"{json.dumps(tree)}: {fault}" for fault in case.faults]


def _valid(case: Case) -> tuple[dict[str, Any], int]:
    """A configuration that `tdmr1 train` accepts, and the number of draws."""
    from tdmr1_core.errors import Tdmr1Error
    from tdmr1_core.plugins import discover
    from tdmr1_core.preflight.layers import Flags, resolve_settings

    found, path, reason = discover(), case.folder / "drawn.yaml", ""
    for drawn in range(1, TRIES + 1):
        tree = draw(case.rng, case.number)
        path.write_text(yaml.safe_dump(tree))
        try:
            resolve_settings(Flags(config=path), "train", found)
            return tree, drawn
        except Tdmr1Error as error:
            reason = error.message
    raise AssertionError(f"no valid configuration in {TRIES} draws; the last was refused: {reason}")


def draw(rng: random.Random, number: int) -> dict[str, Any]:
    """The smallest configuration with random values of one to twelve settings; item `number` has setting `number`."""
    from tdmr1_core.config import RunConfig

    settings = sorted(_settings(RunConfig), key=itemgetter(0))
    chosen = [settings[number % len(settings)], *rng.sample(settings, rng.choice([0, 1, 3, 6, 11]))]
    tree: dict[str, Any] = json.loads(json.dumps(BASE))
    for name, field in chosen:
        if name == "rewards":
            tree["rewards"] = [_reward(rng, which) for which in rng.sample(REWARDS, rng.choice([1, 2]))]
        elif name.endswith(".rewards"):
            _set(tree, name, [_reward(rng, rng.choice(REWARDS))])
        else:
            _set(tree, name, _value(rng, name, field))
    return tree


def _reward(rng: random.Random, name: str) -> dict[str, Any]:
    from tdmr1_core.config import RewardConfig

    settings = sorted(_settings(RewardConfig, "rewards."), key=itemgetter(0))
    chosen = rng.sample(settings, rng.choice([0, 1, 2]))
    return {**{full.partition(".")[2]: _value(rng, full, field) for full, field in chosen}, "name": name}


def _settings(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """The dotted name and the field of every setting; a list of rewards is one setting."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _settings(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def _value(rng: random.Random, name: str, field: FieldInfo) -> Any:
    """A random value of a setting that is no list of rewards."""
    return rng.choice(NAMED[name]) if name in NAMED else _of_type(rng, field.annotation, tuple(field.metadata))


def _of_type(rng: random.Random, annotation: Any, bounds: tuple[Any, ...]) -> Any:
    """A random value of an annotation within its bounds."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return rng.choice(arguments)
    if hasattr(annotation, "__metadata__"):
        inner = [getattr(each, "metadata", (each,)) for each in annotation.__metadata__]
        return _of_type(rng, annotation.__origin__, (*bounds, *(bound for group in inner for bound in group)))
    if arguments and origin is not tuple:
        return _of_type(rng, rng.choice(arguments), bounds)
    if annotation is type(None):
        return None
    if annotation is bool:
        return rng.random() < 0.5
    low = max(
        (bound.ge if isinstance(bound, Ge) else bound.gt for bound in bounds if isinstance(bound, Ge | Gt)), default=0
    )
    high = min(
        (bound.le if isinstance(bound, Le) else bound.lt for bound in bounds if isinstance(bound, Le | Lt)),
        default=None,
    )
    if annotation is int:
        return int(low) + rng.choice([0, 1, 2, 3])
    if annotation is float and high is not None:
        return low + rng.choice([0.1, 0.5, 0.9, 0.999]) * (high - low)
    if annotation is float:
        return low + rng.choice([1e-6, 1e-3, 0.1, 0.5, 1.0, 3.0, 1000.0])
    raise TypeError(f"no values for the type {annotation}")


def _set(tree: dict[str, Any], name: str, value: Any) -> None:
    *sections, last = name.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
    tree[last] = value


PART = Part("configurations", run, seconds=6)
