"""Rewards that a Python program gives as objects: their settings, and the objects that only this program has."""

from __future__ import annotations

import functools
import inspect
import os
import re
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from numbers import Real
from typing import Any

from tdmr1_core.config import RewardConfig, RunConfig
from tdmr1_core.config_loading import Tree
from tdmr1_core.errors import Tdmr1Error, shorten
from tdmr1_core.preflight.layers import parse_reward
from tdmr1_core.preflight.option_paths import listed_rewards
from tdmr1_rewards.api import RewardSpec
from tdmr1_rewards.calling import session
from tdmr1_rewards.sources.parsing import ATTRIBUTE, parse_source, snake_case

LAMBDA = "function"
"""The name of a lambda as a reward."""
FORMS = (
    "a reward is a name such as 'object_count', a function of images and prompts, a Reward, a RewardSpec, a pair "
    "(reward, weight), {'reward': …, 'weight': …, 'options': {…}}, or a list of these"
)


@dataclass(frozen=True)
class PythonRewards:
    """Rewards as settings, and those objects among them that only this program has, by their names."""

    settings: tuple[Tree, ...] = ()
    objects: Mapping[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The names of the rewards in metrics."""
        return [str(settings["name"]) for settings in self.settings]


def read_rewards(reward: Any, *, as_objects: Collection[str] = ()) -> PythonRewards:
    """The settings of the rewards of an argument; see `FORMS`. None has none.

    A function or class that can be imported is named by its module, unless its name is in `as_objects`. Any other
    object belongs to this program. Raises Tdmr1Error for an argument of another form.
    """
    settings: list[Tree] = []
    objects: dict[str, Any] = {}
    for item, weight in _listed(reward):
        given = _settings(item, objects, as_objects)
        settings.append(given if weight is None else {**given, "weight": weight})
    return PythonRewards(tuple(settings), objects)


def match_objects(config: RunConfig, reward: Any) -> dict[str, Any]:
    """The objects of `reward` for those rewards of a run that are objects of a program, by their names.

    A function that the run knows as an object may be in a module now. A single object is used for the only such reward,
    whatever its name. Raises Tdmr1Error for objects that are missing or that the run does not have.
    """
    sources = [each.source for _, each in listed_rewards(config)]
    wanted = list(dict.fromkeys(name for source in sources if (name := session.name_in(source)) is not None))
    given = read_rewards(reward, as_objects=wanted)
    objects = dict(given.objects)
    if len(wanted) == len(objects) == 1:
        objects = {wanted[0]: next(iter(objects.values()))}
    if missing := [name for name in wanted if name not in objects]:
        raise session.absent(*missing, hint=f"give {' and '.join(missing)} as the argument `reward`")
    others = [str(each["name"]) for each in given.settings if session.name_in(each.get("source")) is None]
    known = {each.name for _, each in listed_rewards(config)}
    if unknown := [*(name for name in objects if name not in wanted), *(name for name in others if name not in known)]:
        raise Tdmr1Error(
            f"the run has no reward {unknown[0]!r}, but a run keeps its rewards",
            f"its rewards: {', '.join(reward.name for reward in config.rewards)}",
            code="option-conflict",
            values={"rewards": unknown},
        )
    return {name: objects[name] for name in wanted}


def _listed(reward: Any) -> Iterable[tuple[Any, Any]]:
    """The rewards of an argument, each with its weight if it is in a pair."""
    if reward is None:
        return []
    if _is_pair(reward):
        return [reward]
    if isinstance(reward, list | tuple):
        return [item if _is_pair(item) else (item, None) for item in reward]
    return [(reward, None)]


def _is_pair(item: Any) -> bool:
    return isinstance(item, tuple) and len(item) == 2 and isinstance(item[1], Real) and not isinstance(item[0], Real)


def _settings(item: Any, objects: dict[str, Any], as_objects: Collection[str]) -> Tree:
    """The settings of one reward. An object of this program is added to `objects`."""
    if isinstance(item, str):
        return parse_reward(item).tree
    if isinstance(item, RewardConfig):
        return item.model_dump(exclude_unset=True)
    if isinstance(item, Mapping):
        others = {str(name): value for name, value in item.items() if name != "reward"}
        if "reward" in item:
            return {**_settings(item["reward"], objects, as_objects), **others}
        if "name" not in others and isinstance(others.get("source"), str):
            others["name"] = parse_source(others["source"]).name
        if "name" not in others:
            raise _not_a_reward(item)
        return others
    if not (callable(item) or callable(getattr(item, "score", None)) or isinstance(item, RewardSpec)):
        raise _not_a_reward(item)
    name = _name(item)
    source = None if name in as_objects else _importable(item)
    if source is None:
        name = _unique(name, item, objects)
        objects[name] = item
        source = session.source_of(name)
    return {"name": name, "source": source}


def _not_a_reward(item: Any) -> Tdmr1Error:
    return Tdmr1Error(
        f"{shorten(repr(item))} is not a reward", FORMS, code="reward-source", values={"type": type(item).__name__}
    )


def _name(item: Any) -> str:
    """The name of a reward in metrics: that of the spec, function or class, in snake case."""
    if isinstance(item, RewardSpec):
        return item.name
    while isinstance(item, functools.partial):
        item = item.func
    named = str(getattr(item, "__name__", None) or type(item).__name__)
    return LAMBDA if named == "<lambda>" else snake_case(named)


def _unique(name: str, item: Any, objects: Mapping[str, Any]) -> str:
    """The name, with a number if another object has it."""
    names = [name, *(f"{name}_{number}" for number in range(2, len(objects) + 2))]
    return next(each for each in names if objects.get(each, item) is item)


def _importable(item: Any) -> str | None:
    """`module:attribute` of a function or class that other programs can import; None for any other object."""
    module, attribute = getattr(item, "__module__", None), getattr(item, "__qualname__", None)
    loaded = sys.modules.get(str(module))
    is_code = inspect.isroutine(item) or inspect.isclass(item)
    if not is_code or loaded is None or module in ("__main__", "__mp_main__"):
        return None
    if not isinstance(attribute, str) or not re.fullmatch(ATTRIBUTE, attribute):
        return None
    found: Any = loaded
    for part in attribute.split("."):
        found = getattr(found, part, None)
    top = str(module).partition(".")[0]
    is_found = PathFinder.find_spec(top, [os.getcwd(), *sys.path]) is not None
    return f"{module}:{attribute}" if found is item and is_found else None
