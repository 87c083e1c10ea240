"""A reward that is still to be built: by name instead of as an object, so that another process can build it."""

from __future__ import annotations

import importlib.util
import os
import pkgutil
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tdmr1_rewards.api import Reward, RewardSpec
from tdmr1_rewards.calling.import_file import load_from_file
from tdmr1_rewards.errors import Tdmr1Error, describe_error


@dataclass(frozen=True, kw_only=True)
class Reference:
    """How to build a reward.

    `factory` is "module:attr", or {"file": path, "attr": name} of a Python file. It is called with the validated
    `options` where there is an `options_model` ("module:attr" of a RewardOptions class), else with nothing; or, where
    there is an `adapter` ("module:attr"), adapter(thing, options, owner=…) makes the reward of what the factory names.
    `paths` are searched for modules first, and `modules` says where single ones lie (a file, or a package's folder).
    """

    factory: str | Mapping[str, str]
    options: Mapping[str, Any] = field(default_factory=dict)
    options_model: str | None = None
    adapter: str | None = None
    paths: Sequence[str] = ()
    modules: Mapping[str, str] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """As JSON; options that JSON does not know become text."""
        from tdmr1_rewards.calling.wire import plain

        return plain(asdict(self))


def reference_of(spec: RewardSpec, options: Mapping[str, Any]) -> Reference:
    """How this process builds a reward from its spec."""
    return Reference(factory=spec.factory, options=options, options_model=spec.options)


def portable(reference: Reference, python: Path | None) -> Reference:
    """The reference with what else a process of this interpreter, or of `python`, must know to import the factory."""
    if python is None:
        return replace(reference, paths=[os.path.abspath(path) for path in sys.path])
    if not isinstance(reference.factory, str):
        return reference
    top = reference.factory.partition(":")[0].partition(".")[0]
    place = _place(top)
    if place is None or top == "tdmr1_rewards":
        return reference
    if place.parent in _installed_folders():
        return replace(reference, modules={top: str(place)})
    return replace(reference, paths=[str(place.parent)])


def build(reference: Reference, owner: str) -> Reward:
    """Import and build the reward; options are validated before its factory is called.

    Raises Tdmr1Error, starting with `owner`, for wrong options (all at once) and when it cannot be built.
    """
    arguments = [] if reference.options_model is None else [validated_options(reference, owner)]
    check_optionless(reference, owner)
    thing = _named(reference.factory, owner)
    try:
        if reference.adapter is not None:
            reward = resolve(reference.adapter, owner)(thing, reference.options, owner=owner)
        else:
            reward = thing(*arguments)
    except Tdmr1Error:
        raise
    except Exception as error:
        raise Tdmr1Error(f"{owner} could not be built: {describe_error(error)}") from error
    if not isinstance(reward, Reward):
        raise Tdmr1Error(f"{owner}: {reference.factory} made a {type(reward).__name__}, which cannot be called")
    return reward


def validated_options(reference: Reference, owner: str) -> Any:
    """The options as its own model. Raises Tdmr1Error for wrong ones, and if the model cannot be imported."""
    assert reference.options_model is not None
    model = resolve(reference.options_model, owner)
    from tdmr1_rewards.options import RewardOptions, validate_options

    if not (isinstance(model, type) and issubclass(model, RewardOptions)):
        raise Tdmr1Error(f"{owner}: {reference.options_model} is not a RewardOptions class")
    return validate_options(model, reference.options, owner)


def check_optionless(reference: Reference, owner: str) -> None:
    """Raise Tdmr1Error for options that nothing takes."""
    if reference.options and reference.options_model is None and reference.adapter is None:
        raise Tdmr1Error(f"{owner} takes no options, but got {', '.join(map(repr, reference.options))}")


def resolve(name: str, owner: str) -> Any:
    """The object that "module:attr" names. Raises Tdmr1Error if it cannot be imported."""
    try:
        return pkgutil.resolve_name(name)
    except Exception as error:
        raise Tdmr1Error(f"{owner}: {name} could not be imported: {describe_error(error)}") from error


def _place(module: str) -> Path | None:
    """Where a top-level module lies here: its file, or its package's folder."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    if spec is None or not spec.has_location or spec.origin is None:
        return None
    origin = Path(spec.origin).absolute()
    return origin.parent if spec.submodule_search_locations else origin


def _installed_folders() -> set[Path]:
    """The folders that pip installs into here: nothing else in them is meant for another environment."""
    return {Path(sysconfig.get_path(name)).absolute() for name in ("purelib", "platlib")}


def _named(factory: str | Mapping[str, str], owner: str) -> Any:
    if isinstance(factory, str):
        return resolve(factory, owner)
    try:
        return load_from_file(Path(factory["file"]), factory["attr"])
    except Tdmr1Error as error:
        raise Tdmr1Error(f"{owner}: {error.message}", error.hint) from error
