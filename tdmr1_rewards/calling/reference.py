"""Describes how to build a reward, as plain data, so that another process can build it."""

from __future__ import annotations

import importlib.util
import os
import pkgutil
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tdmr1_rewards.api import Reward, RewardSpec
from tdmr1_rewards.calling.import_file import load_from_file
from tdmr1_rewards.calling.process_state import guarded_import
from tdmr1_rewards.calling.user_code import describe_raised
from tdmr1_rewards.errors import Tdmr1Error, close_match_hint
from tdmr1_rewards.registry import BUILTIN, RegisteredReward
from tdmr1_rewards.texts.redaction import REDACTED, is_secret_name, remember_declared
from tdmr1_rewards.texts.variables import expand

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from tdmr1_rewards.options import RewardOptions

Options = TypeVar("Options", bound="RewardOptions")

ADAPTERS = "tdmr1_rewards.sources.foreign"
"""The module that adapts rewards. It imports this one, so its functions are resolved by name."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """How to build a reward.

    `factory` is "module:attr", or {"file": path, "attr": name} for a Python file. With an `options_model`
    ("module:attr" of a RewardOptions class) the factory is called with the validated `options`, else without an
    argument; what it returns is adapted. With an `adapter` ("module:attr") the factory is not called here:
    adapter(factory, options, owner=…) returns the reward. `paths` are put first on sys.path. `modules` maps names of
    top-level modules to a file or a package folder.
    """

    factory: str | Mapping[str, str]
    options: Mapping[str, Any] = field(default_factory=dict)
    options_model: str | None = None
    adapter: str | None = None
    paths: Sequence[str] = ()
    modules: Mapping[str, str] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """The reference as JSON data. Options of other types become text."""
        from tdmr1_rewards.calling.wire import plain

        return plain(asdict(self))


def reference_of(spec: RewardSpec, options: Mapping[str, Any]) -> Reference:
    """How this process builds the reward of a spec."""
    adapter = f"{ADAPTERS}:adapt_registered" if spec.options is None else None
    return Reference(factory=spec.factory, options=options, options_model=spec.options, adapter=adapter)


def portable(reference: Reference, python: Path | None) -> Reference:
    """The reference with the paths or modules that another process needs to import the factory.

    A process of this interpreter (`python` is None) gets all of sys.path. A process of another one gets only the folder
    of the factory's module, or only the module if it is installed among other packages here.
    """
    if python is None:
        return replace(reference, paths=[os.path.abspath(path) for path in sys.path])
    if not isinstance(reference.factory, str):
        return reference
    top = reference.factory.partition(":")[0].partition(".")[0]
    location = _location(top)
    if location is None or top == "tdmr1_rewards":
        return reference
    if location.parent in _installed_folders():
        return replace(reference, modules={top: str(location)})
    return replace(reference, paths=[str(location.parent)])


def guarded(owner: object) -> AbstractContextManager[None]:
    """A context in which code of a reward is imported or called: what it changes in the process is restored.

    It does nothing for rewards of tdmr1, which change nothing, and in the process of a reward (`owner` is a text).
    """
    if not isinstance(owner, RegisteredReward) or owner.provenance.plugin == BUILTIN:
        return nullcontext()
    return guarded_import(str(owner))


def build(reference: Reference, owner: object) -> Reward:
    """Import and build the reward. The options are validated before the factory is called.

    Raises Tdmr1Error, which starts with `owner`, for wrong options, and if the reward cannot be imported or built.
    """
    with guarded(owner):
        reward = _build(reference, owner)
    if not isinstance(reward, Reward):
        raise Tdmr1Error(
            f"{owner}: {reference.factory} returned a {type(reward).__name__}, which cannot be called",
            "return a Reward, or a function of a RewardBatch",
            code="reward-build",
            values={"reward": str(owner), "factory": str(reference.factory), "type": type(reward).__name__},
        )
    return reward


def _build(reference: Reference, owner: object) -> Any:
    arguments = [] if reference.options_model is None else [validated_options(reference, owner)]
    check_optionless(reference, owner)
    factory = _load_factory(reference.factory, owner)
    try:
        if reference.adapter is not None:
            return resolve(reference.adapter, owner)(factory, reference.options, owner=str(owner))
        return resolve(f"{ADAPTERS}:adapt_made", owner)(partial(factory, *arguments), owner=str(owner))
    except Tdmr1Error:
        raise
    except (Exception, SystemExit) as error:
        raise build_failed(owner, error) from error


def build_failed(owner: object, error: BaseException) -> Tdmr1Error:
    """The error for an exception of a factory."""
    found = describe_raised(error)
    return Tdmr1Error(
        f"{owner} cannot be built: {found}",
        found.hint("check the options of the reward"),
        code="reward-build",
        values={"reward": str(owner), **found.values},
    )


def validated_options(reference: Reference, owner: object) -> Any:
    """The options as an instance of their model. Raises Tdmr1Error if they are wrong or the model cannot be loaded."""
    assert reference.options_model is not None
    model = resolve(reference.options_model, owner)
    from tdmr1_rewards.options import RewardOptions

    if not (isinstance(model, type) and issubclass(model, RewardOptions)):
        raise Tdmr1Error(
            f"{owner}: {reference.options_model} is not a RewardOptions class",
            "derive it from tdmr1_rewards.RewardOptions",
            code="reward-spec",
            values={"reward": str(owner), "field": "options", "found": reference.options_model},
        )
    return validate_options(model, reference.options, owner)


def validate_options(model: type[Options], options: Mapping[str, Any], owner: object) -> Options:
    """Validate options with their RewardOptions class. Raises one Tdmr1Error, with `owner`, for all wrong options.

    An exception of a validator other than those of pydantic also becomes a Tdmr1Error.
    """
    from pydantic import ValidationError

    remember_declared(model, options)
    try:
        return model.model_validate(dict(options))
    except ValidationError as error:
        known = list(model.model_fields)
        mistakes = error.errors(include_url=False)
        problems = [_problem(item, known) for item in mistakes]
        raise Tdmr1Error(
            f"{owner} got wrong options: {'; '.join(problems)}",
            f"options are: {', '.join(known)}" if known else "it takes no options",
            code="reward-options",
            values={"reward": str(owner), "options": [_path(item) for item in mistakes], "problems": problems},
        ) from error
    except Tdmr1Error:
        raise
    except Exception as error:
        found = describe_raised(error)
        raise Tdmr1Error(
            f"{owner}: {model.__name__} raised {found}",
            found.hint("check the options of the reward"),
            code="reward-options",
            values={"reward": str(owner), **found.values},
        ) from error


def _problem(error: ErrorDetails, known: list[str]) -> str:
    """Describe one mistake, such as "'min_area' should be greater than 0, not -1"."""
    path = _path(error)
    if error["type"] == "extra_forbidden":
        # `known` has the names of the outermost model only.
        match = f" ({close_match_hint(path, known)})" if len(error["loc"]) == 1 else ""
        return f"unknown option {path!r}{match}"
    if error["type"] == "missing":
        return f"{path!r} is required"
    problem = error["msg"].removeprefix("Input ").removeprefix("Value error, ")
    found = REDACTED if is_secret_name(path) else repr(error["input"])
    return f"{path!r} {problem}, not {found}" if path else problem


def _path(error: ErrorDetails) -> str:
    return ".".join(map(str, error["loc"]))


def check_options(registered: RegisteredReward, options: Mapping[str, Any], python: Path | None = None) -> Any:
    """The options as an instance of their RewardOptions class; None if the reward has no such class.

    Raises Tdmr1Error for options that a reward does not accept, as far as this process knows its options. The options
    of a reward of another environment (`python`) are checked there, when the reward is built.
    """
    if python is not None:
        return None
    options = expand(options, registered)
    with guarded(registered):
        if registered.spec.options is not None:
            return validated_options(reference_of(registered.spec, options), registered)
        kind = "registered" if registered.source is None else registered.source.kind
        is_loaded = kind in ("file", "module") and not registered.has_own_spec
        if is_loaded or (kind == "registered" and options):
            check_parameters(registered.spec, options, registered)
    return None


def check_parameters(spec: RewardSpec, options: Mapping[str, Any], owner: object) -> None:
    """Raise Tdmr1Error for options that the factory of a spec without options class does not know, or that it lacks."""
    resolve(f"{ADAPTERS}:check_registered", owner)(resolve(spec.factory, owner), options, owner=str(owner))


def check_optionless(reference: Reference, owner: object) -> None:
    """Raise Tdmr1Error if there are options and the reward takes none."""
    if reference.options and reference.options_model is None and reference.adapter is None:
        raise Tdmr1Error(
            f"{owner} takes no options, but got {', '.join(map(repr, reference.options))}",
            code="reward-options",
            values={"reward": str(owner), "options": list(reference.options)},
        )


def resolve(name: str, owner: object) -> Any:
    """Import the object "module:attr". Raises Tdmr1Error if that fails."""
    try:
        return pkgutil.resolve_name(name)
    except (Exception, SystemExit) as error:
        found = describe_raised(error)
        raise Tdmr1Error(
            f"{owner}: {name} cannot be imported: {found}",
            found.hint("check the name, or install the module"),
            code="reward-import",
            values={"reward": str(owner), "source": name, **found.values},
        ) from error


def call_named(name: str, owner: object, *arguments: Any, remedy: str) -> Any:
    """Import the function "module:attr" of a reward and call it.

    Raises Tdmr1Error if the import fails, if the function raises it, and with `remedy` if it raises something else.
    """
    try:
        with guarded(owner):
            return resolve(name, owner)(*arguments)
    except Tdmr1Error:
        raise
    except (Exception, SystemExit) as error:
        found = describe_raised(error)
        raise Tdmr1Error(
            f"{owner}: {name} raised {found}",
            found.hint(remedy),
            code="reward-failed",
            values={"reward": str(owner), **found.values},
        ) from error


def _location(module: str) -> Path | None:
    """The file or package folder of a top-level module in this environment; None if it has none."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    if spec is None or not spec.has_location or spec.origin is None:
        return None
    origin = Path(spec.origin).absolute()
    return origin.parent if spec.submodule_search_locations else origin


def _installed_folders() -> set[Path]:
    """The folders that pip installs into. Their other packages must not be visible in another environment."""
    return {Path(sysconfig.get_path(name)).absolute() for name in ("purelib", "platlib")}


def _load_factory(factory: str | Mapping[str, str], owner: object) -> Any:
    if isinstance(factory, str):
        return resolve(factory, owner)
    try:
        return load_from_file(Path(factory["file"]), factory["attr"])
    except Tdmr1Error as error:
        raise Tdmr1Error(f"{owner}: {error.message}", error.hint, code=error.code, values=error.values) from error
