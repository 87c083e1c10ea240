"""Finds and builds rewards by their source: a registered name, a function in a file or module, or a server.

`parsing.py` describes the forms of a source. An object in a file or module may be a RewardSpec, a Reward class (with
one RewardOptions parameter, or none), a Reward, a function of a RewardBatch, or a reward of another toolkit
(`signatures.py`).
"""

from __future__ import annotations

import inspect
import pkgutil
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

from tdmr1_rewards.api import Reward, RewardSpec, RunPreview
from tdmr1_rewards.calling.import_file import private_name
from tdmr1_rewards.calling.reference import (
    Reference,
    build,
    check_optionless,
    portable,
    reference_of,
    resolve,
    validate_options,
    validated_options,
)
from tdmr1_rewards.errors import Tdmr1Error, describe_error
from tdmr1_rewards.registry import Provenance, RegisteredReward, RewardRegistry
from tdmr1_rewards.sources.foreign import adapt
from tdmr1_rewards.sources.parsing import FORMS, PATTERN, Source, parse_source, snake_case
from tdmr1_rewards.sources.signatures import recognise

__all__ = [
    "FORMS",
    "NO_PROMPTS",
    "PATTERN",
    "Source",
    "create_reward",
    "find_reward",
    "freeze_options",
    "parse_source",
    "preflight",
    "reference_for",
    "snake_case",
]

NO_PROMPTS = ""
"""The default prompts of a reward that is not registered: the first prompt set of the model's domain."""


def find_reward(registry: RewardRegistry, source: str | Source, python: Path | None = None) -> RegisteredReward:
    """The spec and the provenance of the reward that a source names.

    A file or module is imported to read its spec: by a process of the interpreter `python` if that is given, else
    here. Nothing is built, and a server is not contacted. Raises Tdmr1Error for an unknown or invalid source, if the
    import fails, and if the object is not a reward.
    """
    parsed = parse_source(source) if isinstance(source, str) else source
    if parsed.kind == "registered":
        try:
            return replace(registry.get(parsed.place), source=parsed)
        except Tdmr1Error as error:
            raise _not_registered(registry, parsed, error) from error
    if parsed.kind == "remote":
        return _remote(parsed)
    _reject_word_as_weight(registry, parsed)
    if python is not None:
        return _describe_elsewhere(parsed.absolute(), python.absolute())
    return _describe(parsed, parsed.load())


def create_reward(registered: RegisteredReward, options: Mapping[str, Any]) -> Reward:
    """Build a reward that `find_reward` returned, in this process; its options are validated first.

    Raises Tdmr1Error for wrong options, and if the reward cannot be built.
    """
    source = _source_of(registered)
    if source.kind == "remote":
        return _create_remote(source, options, str(registered))
    target = None if source.kind == "registered" else source.load()
    if target is None or isinstance(target, RewardSpec):
        return build(reference_of(registered.spec, options), registered)
    return adapt(target, options, owner=str(registered))


def reference_for(registered: RegisteredReward, options: Mapping[str, Any], python: Path | None = None) -> Reference:
    """How another process, of this interpreter or of `python`, builds a reward that `find_reward` returned.

    The options of a registered reward are validated here if their model can be imported here. Raises Tdmr1Error for
    wrong options, for an options model that cannot be imported (without `python`), and for a server, which needs no
    other process.
    """
    source = _source_of(registered)
    if source.kind == "remote":
        raise Tdmr1Error(
            f"{registered} already runs on a server",
            "remove `isolated` and `python` from its settings",
            code="setting-conflict",
            values={"reward": registered.spec.name},
        )
    if source.kind == "registered":
        reference = reference_of(registered.spec, options)
        check_optionless(reference, str(registered))
        if reference.options_model is not None and (python is None or _importable(reference.options_model)):
            validated_options(reference, str(registered))
        return portable(reference, python)
    module, _, attribute = registered.spec.factory.partition(":")
    in_file = source.kind == "file" and module == private_name(source.path)
    factory = _in_file(source, attribute) if in_file else registered.spec.factory
    adapted = Reference(factory=factory, options=options, adapter="tdmr1_rewards.sources.foreign:adapt")
    return _portable_from_here(adapted, python)


def freeze_options(
    registered: RegisteredReward, options: Mapping[str, Any], python: Path | None = None
) -> dict[str, Any]:
    """The options; values such as "auto" are replaced by what they select here (`freeze` of the spec).

    With `python`, they are replaced by what they select in its environment. Raises Tdmr1Error for wrong options, and
    if the reward's own function raises it.
    """
    if registered.spec.freeze is None:
        return dict(options)
    if python is not None:
        return _freeze_elsewhere(registered, options, python.absolute())
    given = validated_options(reference_of(registered.spec, options), registered)
    before = given.model_dump(mode="json")
    after = resolve(registered.spec.freeze, registered)(given).model_dump(mode="json")
    return {**options, **{name: value for name, value in after.items() if value != before[name]}}


def preflight(
    registered: RegisteredReward,
    options: Mapping[str, Any],
    prompts: Sequence[str],
    metadata: Sequence[Mapping[str, Any]],
    run_folder: Path | None = None,
) -> list[str | None]:
    """For each of N prompts None, or why a reward cannot score its images, from the `preflight` function of its spec.

    Raises Tdmr1Error for wrong options, and if the function of the reward raises, cannot be imported, or does not
    return N entries that are None or strings.
    """
    spec = registered.spec
    if spec.preflight is None:
        return [None] * len(prompts)
    given = None if spec.options is None else validated_options(reference_of(spec, options), registered)
    function = resolve(spec.preflight, registered)
    try:
        answer = function(RunPreview(prompts=prompts, metadata=metadata, options=given, run_folder=run_folder))
    except Tdmr1Error:
        raise
    except Exception as error:
        described = describe_error(error)
        raise Tdmr1Error(
            f"{registered}: {spec.preflight} raised {described}",
            "correct the function, or remove `preflight` from the RewardSpec",
            code="reward-failed",
            values={"reward": str(registered), "error": described},
        ) from error
    reasons = list(answer) if isinstance(answer, list | tuple) else []
    if len(reasons) != len(prompts) or not all(reason is None or isinstance(reason, str) for reason in reasons):
        found = f"a list of {len(reasons)}" if isinstance(answer, list | tuple) else f"a {type(answer).__name__}"
        raise Tdmr1Error(
            f"{registered}: {spec.preflight} returned {found}, but must return None or a string for each of "
            f"{len(prompts)} prompts",
            "correct the function",
            code="reward-spec",
            values={"reward": str(registered), "field": "preflight", "found": found, "prompts": len(prompts)},
        )
    return reasons


def _source_of(registered: RegisteredReward) -> Source:
    return registered.source or Source("registered", registered.spec.name)


def _not_registered(registry: RewardRegistry, source: Source, error: Tdmr1Error) -> Tdmr1Error:
    """The error for a name that is not registered. A name that looks like a path gets the forms of a source as hint."""
    if source.place in registry.names() or not re.search(r"[./]", source.place):
        return error
    return Tdmr1Error(error.message, FORMS, code=error.code, values=error.values)


def _reject_word_as_weight(registry: RewardRegistry, source: Source) -> None:
    """`object_count:heavy` is a registered reward with a wrong weight, not an object of a module."""
    if source.kind == "module" and source.place in registry.names():
        raise Tdmr1Error(
            f"{str(source)!r}: the weight {source.attribute!r} is not a number",
            f"write a weight like `{source.place}:0.5`",
            code="reward-source",
            values={"source": str(source), "weight": source.attribute},
        )


def _remote(source: Source) -> RegisteredReward:
    spec = RewardSpec(
        name=source.name,
        summary=f"scored by the server at {source.place}",
        factory="tdmr1_rewards.sources.remote:RemoteReward",
        options="tdmr1_rewards.sources.remote:RemoteOptions",
        default_prompts=NO_PROMPTS,
    )
    provenance = Provenance("remote", source.place, None, "tdmr1_rewards.sources.remote")
    return RegisteredReward(spec, provenance, source=source)


def _create_remote(source: Source, options: Mapping[str, Any], owner: str) -> Reward:
    from tdmr1_rewards.sources.remote import RemoteOptions, RemoteReward

    return RemoteReward(source.place, validate_options(RemoteOptions, options, owner))


@cache
def _describe_elsewhere(source: Source, python: Path) -> RegisteredReward:
    """Let a process of another environment import a file or module and describe the object."""
    from tdmr1_rewards.calling.process import request_from

    factory = _in_file(source, source.attribute) if source.kind == "file" else str(source)
    owner = f"reward {source.name!r} (from {source.place})"
    reference = _portable_from_here(Reference(factory=factory), python)
    answer = request_from(python, "describe", reference, owner, source=str(source))
    spec = RewardSpec(**{**answer["spec"], "requires": tuple(answer["spec"]["requires"])})
    return RegisteredReward(spec, _provenance(source), taken_as=answer["taken_as"], source=source)


def _freeze_elsewhere(registered: RegisteredReward, options: Mapping[str, Any], python: Path) -> dict[str, Any]:
    from tdmr1_rewards.calling.process import request_from

    source = _source_of(registered).absolute()
    reference = _portable_from_here(replace(reference_of(registered.spec, options), options_model=None), python)
    known = {"spec": asdict(registered.spec), "provenance": asdict(registered.provenance)}
    answer = request_from(
        python,
        "freeze",
        reference,
        str(registered),
        source=str(source),
        registered=known if source.kind == "registered" else None,
    )
    return dict(answer["options"])


def _in_file(source: Source, attribute: str) -> dict[str, str]:
    return {"file": str(source.path.absolute()), "attr": attribute}


def _portable_from_here(reference: Reference, python: Path | None) -> Reference:
    """A portable reference; a module that is not found elsewhere is searched for in the current folder."""
    placed = portable(reference, python)
    if python is None or placed.paths or placed.modules or not isinstance(reference.factory, str):
        return placed
    return replace(placed, paths=[str(Path.cwd())])


def _importable(name: str) -> bool:
    try:
        pkgutil.resolve_name(name)
    except Exception:
        return False
    return True


def _provenance(source: Source) -> Provenance:
    module = private_name(source.path) if source.kind == "file" else source.place
    return Provenance(source.kind, source.place, None, f"{module}:{source.attribute}")


def _describe(source: Source, target: Any) -> RegisteredReward:
    """An object of a file or module as a reward: its own RewardSpec, or one that is derived from the object."""
    provenance = _provenance(source)
    module = provenance.module.partition(":")[0]
    if isinstance(target, RewardSpec):
        return RegisteredReward(
            _with_importable_names(target, source, module), provenance, taken_as="a RewardSpec", source=source
        )
    recognised = recognise(target, str(source))
    model = recognised.options_model
    spec = RewardSpec(
        name=source.name,
        summary=(inspect.getdoc(target) or "").partition("\n")[0],
        factory=f"{module}:{source.attribute}",
        options=f"{model.__module__}:{model.__qualname__}" if model else None,
        default_prompts=NO_PROMPTS,
        image_format="array" if recognised.roles else "pil",
    )
    return RegisteredReward(spec, provenance, taken_as=recognised.description, source=source)


def _with_importable_names(spec: RewardSpec, source: Source, module: str) -> RewardSpec:
    """A RewardSpec in a file may name the file by its stem; that is replaced by the private name of its module."""
    if source.kind != "file":
        return spec
    moved: dict[str, Any] = {
        name: f"{module}:{reference.partition(':')[2]}"
        for name in ("factory", "options", "examples", "freeze", "preflight")
        if (reference := getattr(spec, name)) and reference.partition(":")[0] == source.path.stem
    }
    return replace(spec, **moved)
