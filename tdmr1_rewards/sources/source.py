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
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, get_args

from tdmr1_rewards.api import Reward, RewardSpec, RunPreview
from tdmr1_rewards.calling import session
from tdmr1_rewards.calling.import_file import private_name
from tdmr1_rewards.calling.process_state import guarded_import
from tdmr1_rewards.calling.reference import (
    Reference,
    build,
    call_named,
    check_options,
    guarded,
    portable,
    reference_of,
    validate_options,
)
from tdmr1_rewards.errors import Tdmr1Error
from tdmr1_rewards.registry import OWN_SPEC, Provenance, RegisteredReward, RewardRegistry, availability
from tdmr1_rewards.sources.foreign import IMAGE_FORMAT, adapt
from tdmr1_rewards.sources.image_formats import TESTED, ImageForm, in_words
from tdmr1_rewards.sources.parsing import FORMS, PATTERN, Source, parse_source, snake_case
from tdmr1_rewards.sources.signatures import recognise
from tdmr1_rewards.texts.variables import expand

__all__ = [
    "FORMS",
    "NO_PROMPTS",
    "PATTERN",
    "Source",
    "create_reward",
    "find_reward",
    "freeze_options",
    "lacking",
    "parse_source",
    "preflight",
    "reference_for",
    "reject_other_process",
    "snake_case",
    "source_of",
    "usage",
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
    with guarded_import(f"reward {parsed.name!r} (from {parsed.place})"):
        return _describe(parsed, parsed.load())


def usage(registered: RegisteredReward, options: Mapping[str, Any]) -> str | None:
    """How an object of a file or module is used, with the format of its images; None for other sources."""
    form, chosen = registered.image_form, options.get(IMAGE_FORMAT)
    if registered.taken_as is None or form is None:
        return registered.taken_as
    if isinstance(chosen, str) and chosen in get_args(ImageForm):  # another value is refused when the reward is built
        form = chosen
    if form == TESTED:
        return f"{registered.taken_as}; the format of its images is not declared, and is tested at set-up"
    return f"{registered.taken_as}; it receives {in_words(form)}"


def create_reward(registered: RegisteredReward, options: Mapping[str, Any]) -> Reward:
    """Build a reward that `find_reward` returned, in this process; its options are validated first.

    Raises Tdmr1Error for wrong options, and if the reward cannot be built.
    """
    source, options = source_of(registered), expand(options, registered)
    if source.kind == "remote":
        return _create_remote(source, options, str(registered))
    if source.kind == "registered":
        return build(reference_of(registered.spec, options), registered)
    with guarded(registered):
        target = source.load()
        if isinstance(target, RewardSpec):
            return build(reference_of(registered.spec, options), registered)
        return adapt(target, options, owner=str(registered))


def reference_for(registered: RegisteredReward, options: Mapping[str, Any], python: Path | None = None) -> Reference:
    """How another process, of this interpreter or of `python`, builds a reward that `find_reward` returned.

    The options of a registered reward are validated here if what knows them can be imported here. Raises Tdmr1Error for
    wrong options, for an options model that cannot be imported (without `python`), for a server, which needs no other
    process, and for an object of this program, which no other process has.
    """
    from tdmr1_rewards.sources.elsewhere import in_file, portable_from_here

    source, options = source_of(registered), expand(options, registered)
    if source.kind == "remote":
        reject_other_process(registered)
    if source.place == session.MODULE:
        raise Tdmr1Error(
            f"{registered} is an object of this program, which no other process has",
            "remove `isolated` and `python` from its settings, or define it in a module",
            code="setting-conflict",
            values={"reward": registered.spec.name},
        )
    if source.kind == "registered":
        reference = reference_of(registered.spec, options)
        known_by = reference.options_model or str(reference.factory)
        if python is None or _importable(known_by):
            check_options(replace(registered, source=source), options)
        return portable(reference, python)
    module, _, attribute = registered.spec.factory.partition(":")
    is_in_file = source.kind == "file" and module == private_name(source.path)
    factory = in_file(source, attribute) if is_in_file else registered.spec.factory
    adapted = Reference(factory=factory, options=options, adapter="tdmr1_rewards.sources.foreign:adapt")
    return portable_from_here(adapted, python)


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
        from tdmr1_rewards.sources.elsewhere import ask_about

        given = expand(options, registered)
        answer = ask_about(registered, source_of(registered), "freeze", python, given)["options"]
        return {**options, **{name: value for name, value in answer.items() if value != given.get(name)}}
    remedy = "correct the function, or remove `freeze` from the RewardSpec"
    given = check_options(registered, options)
    before = given.model_dump(mode="json")
    frozen = call_named(registered.spec.freeze, registered, given, remedy=remedy)
    if not isinstance(frozen, type(given)):
        found = type(frozen).__name__
        raise Tdmr1Error(
            f"{registered}: {registered.spec.freeze} returned a {found}, not a {type(given).__name__}",
            "return the options, or `options.model_copy(update={...})`",
            code="reward-spec",
            values={"reward": str(registered), "field": "freeze", "found": found},
        )
    after = frozen.model_dump(mode="json")
    return {**options, **{name: value for name, value in after.items() if value != before[name]}}


def preflight(
    registered: RegisteredReward,
    options: Any,
    prompts: Sequence[str],
    metadata: Sequence[Mapping[str, Any]],
    run_folder: Path | None = None,
) -> list[str | None]:
    """For each of N prompts None, or why a reward cannot score its images, from the `preflight` function of its spec.

    `options` are validated, as `check_options` returns them. Raises Tdmr1Error if the function of the reward raises,
    cannot be imported, or does not return N entries that are None or strings.
    """
    spec = registered.spec
    if spec.preflight is None:
        return [None] * len(prompts)
    preview = RunPreview(prompts=prompts, metadata=metadata, options=options, run_folder=run_folder)
    remedy = "correct the function, or remove `preflight` from the RewardSpec"
    answer = call_named(spec.preflight, registered, preview, remedy=remedy)
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


def lacking(registered: RegisteredReward, options: Any, pixels: int) -> list[Tdmr1Error]:
    """What this machine lacks for a reward: modules, and what the function `lacks` of its spec finds.

    `options` are validated; `pixels` is the longer side of the images. Raises Tdmr1Error if the function raises, or
    returns anything but a list of Tdmr1Error.
    """
    from tdmr1_rewards.builtin.optional import missing_package

    found = availability(registered.spec)
    if not found.usable:
        module = found.missing[0].partition(" or ")[0]
        return [missing_package(module, registered.spec.install or module)]
    if registered.spec.lacks is None:
        return []
    remedy = "correct the function, or remove `lacks` from the RewardSpec"
    answer = call_named(registered.spec.lacks, registered, options, pixels, remedy=remedy)
    if not isinstance(answer, list) or not all(isinstance(each, Tdmr1Error) for each in answer):
        kind = type(answer).__name__
        raise Tdmr1Error(
            f"{registered}: {registered.spec.lacks} returned a {kind}, but must return a list of Tdmr1Error",
            "correct the function",
            code="reward-spec",
            values={"reward": str(registered), "field": "lacks", "found": kind},
        )
    return answer


def reject_other_process(registered: RegisteredReward) -> NoReturn:
    """Raise Tdmr1Error: a reward on a server needs no other process here."""
    raise Tdmr1Error(
        f"{registered} already runs on a server",
        "remove `isolated` and `python` from its settings, or --python from the command",
        code="setting-conflict",
        values={"reward": registered.spec.name},
    )


def source_of(registered: RegisteredReward) -> Source:
    """The source of a reward; its name if it was not searched for."""
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

    return RemoteReward(expand(source.place, owner), validate_options(RemoteOptions, options, owner))


@cache
def _describe_elsewhere(source: Source, python: Path) -> RegisteredReward:
    from tdmr1_rewards.sources.elsewhere import describe

    answer = describe(source, python)
    spec = RewardSpec(**{**answer["spec"], "requires": tuple(answer["spec"]["requires"])})
    described = {name: answer[name] for name in ("taken_as", "image_form")}
    return RegisteredReward(spec, _provenance(source), **described, source=source)


def _importable(name: str) -> bool:
    try:
        pkgutil.resolve_name(name)
    except Exception:
        return False
    return True


def _provenance(source: Source) -> Provenance:
    module = private_name(source.path) if source.kind == "file" else source.place
    place = "this Python program" if source.place == session.MODULE else source.place
    return Provenance(source.kind, place, None, f"{module}:{source.attribute}")


def _describe(source: Source, target: Any) -> RegisteredReward:
    """An object of a file or module as a reward: its own RewardSpec, or one that is derived from the object."""
    provenance = _provenance(source)
    module = provenance.module.partition(":")[0]
    if isinstance(target, RewardSpec):
        return RegisteredReward(
            _with_importable_names(target, source, module), provenance, taken_as=OWN_SPEC, source=source
        )
    recognised = recognise(target, str(source))
    model = recognised.options_model
    spec = RewardSpec(
        name=source.name,
        summary=(inspect.getdoc(target) or "").partition("\n")[0],
        factory=f"{module}:{source.attribute}",
        options=f"{model.__module__}:{model.__qualname__}" if model else None,
        default_prompts=NO_PROMPTS,
        image_format="array" if recognised.roles and recognised.image_form != "pil" else "pil",
    )
    form = recognised.image_form or (TESTED if recognised.roles else None)
    return RegisteredReward(spec, provenance, taken_as=recognised.description, image_form=form, source=source)


def _with_importable_names(spec: RewardSpec, source: Source, module: str) -> RewardSpec:
    """A RewardSpec in a file may name the file by its stem; that is replaced by the private name of its module."""
    if source.kind != "file":
        return spec
    moved: dict[str, Any] = {
        name: f"{module}:{reference.partition(':')[2]}"
        for name in ("factory", "options", "examples", "freeze", "preflight", "lacks")
        if (reference := getattr(spec, name)) and reference.partition(":")[0] == source.path.stem
    }
    return replace(spec, **moved)
