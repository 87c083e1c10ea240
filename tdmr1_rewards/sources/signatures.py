"""What a callable is, read from the names of its parameters: nothing is called, and nothing imported.

| convention | how it is known |
|---|---|
| tdmr1 | one parameter, the RewardBatch |
| flow_grpo, DiffusionNFT, ddpo | `fn(images, prompts, metadata)`; also without the last one or two |
| one picture at a time | `fn(prompt, image)`: the parameter of the picture is in the singular |
| TRL | a parameter `completions`, beside `prompts` and columns |
| scorer objects (imscore, ImageReward) | `.score(pixels, prompts)`, `.score(prompt, image)` |
| a factory of one of these | a function or a class of no argument, or of `device` (flow_grpo's `my_score(device)`) |
"""

from __future__ import annotations

import inspect
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tdmr1_rewards.errors import Tdmr1Error

Style = Literal["tdmr1", "factory", "flow_grpo", "trl", "scorer"]
Role = Literal["images", "image", "prompts", "metadata"]

PICTURES: tuple[Role, ...] = ("images", "image")
ROLES: dict[str, Role] = {
    **dict.fromkeys(("images", "imgs", "pixels", "samples", "pictures"), "images"),
    **dict.fromkeys(("image", "img", "picture"), "image"),
    **dict.fromkeys(("prompts", "prompt", "captions", "caption", "texts", "text"), "prompts"),
    **dict.fromkeys(("metadata", "metadatas", "prompt_metadata"), "metadata"),
}
"""What a parameter of this name is given; prompts and metadata are single ones beside a single picture."""
COMPLETIONS, DEVICE, STRICT = "completions", "device", "only_strict"
"""The last is a parameter of flow_grpo's GenEval reward, which its trainer passes."""
KNOWN = (
    "known are fn(batch: RewardBatch), fn(images, prompts, metadata), fn(prompt, image), a factory of those with no "
    "argument or `device`, TRL's fn(prompts, completions, **columns), and an object with .score(pixels, prompts)"
)


@dataclass(frozen=True)
class Recognised:
    """What a callable was taken for.

    `told` completes "taken as …". `roles` says what each parameter is given; TRL's are given by name and have none.
    `options` are its further parameters with their defaults, which a user may set. `is_native` is true of a reward
    of tdmr1's own kind, and of a class that makes them; its options may have a RewardOptions class, `options_model`.
    """

    style: Style
    told: str
    function: Callable[..., Any]
    roles: Mapping[str, Role] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    has_device: bool = False
    is_native: bool = False
    options_model: type | None = None


def recognise(target: Any, owner: str) -> Recognised:
    """What `target` is; `owner` is how an error calls it. Raises Tdmr1Error where no convention fits."""
    model = _options_model(target)
    if model is not None:
        told = f"a tdmr1 reward with {model.__name__}"
        return Recognised("factory", told, target, is_native=True, options_model=model)
    if inspect.isclass(target):
        return _recognise_class(target, owner)
    seen = []
    for function, is_score in ((target, False), (getattr(target, "score", None), True)):
        if not callable(function):
            continue
        parameters = parameters_of(function)
        found = _recognise_function(function, parameters, is_score=is_score)
        if found is not None:
            return found
        seen.append(_shown(function, parameters))
    if not seen:
        raise Tdmr1Error(f"{owner} is a {type(target).__name__}, which cannot be called", KNOWN)
    raise Tdmr1Error(f"{owner} is {' and '.join(seen)}, which is no known convention of rewards", KNOWN)


def parameters_of(function: Callable[..., Any]) -> list[inspect.Parameter] | None:
    """The parameters of a callable, or None where Python does not know them."""
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return None


def is_required(parameter: inspect.Parameter) -> bool:
    """Whether a call must name it."""
    return parameter.default is parameter.empty and not _is_variadic(parameter)


def _recognise_class(target: type, owner: str) -> Recognised:
    """A class is a factory of what its objects are."""
    made_by = parameters_of(target)
    if made_by is None or not _needs_nothing_but_device(made_by):
        raise Tdmr1Error(
            f"{owner} is made by {_shown(target, made_by)}, which asks for more than a device",
            "give the other parameters defaults, or take one RewardOptions class",
        )
    for name in ("__call__", "score"):
        method = next((vars(base)[name] for base in target.__mro__ if name in vars(base)), None)
        if method is None:
            continue
        parameters = (parameters_of(method) or [])[1:]
        found = _recognise_function(method, parameters, is_score=name == "score")
        if found is not None and found.style != "factory":
            told = f"a class that makes {found.told}"
            options, has_device = _defaults(made_by), _has_device(made_by)
            return Recognised("factory", told, target, {}, options, has_device, found.is_native)
    raise Tdmr1Error(f"the objects that {owner} makes are of no known convention of rewards", KNOWN)


def _recognise_function(
    function: Callable[..., Any], parameters: list[inspect.Parameter] | None, *, is_score: bool
) -> Recognised | None:
    if parameters is None:
        return None
    shown = _shown(function, parameters)
    required = [p for p in parameters if is_required(p)]
    further = _defaults([p for p in parameters if p.name not in ROLES and p.name not in (COMPLETIONS, STRICT)])
    if any(p.name == COMPLETIONS for p in parameters):
        return Recognised("trl", f"a TRL-style function, {shown}", function, options=further)
    roles = _roles(parameters)
    if set(PICTURES) & set(roles.values()) and all(p.name in roles or p.name == STRICT for p in required):
        if is_score:
            return Recognised("scorer", f"a scorer object, .{shown}", function, roles, further)
        what = "a function of one picture at a time" if "image" in roles.values() else "a flow_grpo-style function"
        return Recognised("flow_grpo", f"{what}, {shown}", function, roles, further)
    if is_score:
        return None
    if _needs_nothing_but_device(parameters) and not (parameters and all(map(_is_variadic, parameters))):
        options, has_device = _defaults(parameters), _has_device(parameters)
        return Recognised("factory", f"a factory, {shown}", function, {}, options, has_device)
    if len(required) == 1 and required[0].name not in ROLES and required[0].kind is not inspect.Parameter.KEYWORD_ONLY:
        options = further if inspect.isfunction(function) else {}
        return Recognised("tdmr1", f"a tdmr1 reward, {shown}", function, {}, options, is_native=True)
    return None


def _roles(parameters: Sequence[inspect.Parameter]) -> dict[str, Role]:
    """What is passed: the texts and metadata that have a place, and the pictures asked for."""
    pictures = [p for p in parameters if ROLES.get(p.name) in PICTURES]
    taken = {p.name for p in pictures if is_required(p)} or {p.name for p in pictures[:1]}
    taken |= {p.name for p in parameters if ROLES.get(p.name) in ("prompts", "metadata")}
    return {p.name: ROLES[p.name] for p in parameters if p.name in taken}


def _is_variadic(parameter: inspect.Parameter) -> bool:
    return parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)


def _has_device(parameters: Sequence[inspect.Parameter]) -> bool:
    return any(parameter.name == DEVICE for parameter in parameters)


def _needs_nothing_but_device(parameters: Sequence[inspect.Parameter]) -> bool:
    return all(not is_required(p) or p.name == DEVICE for p in parameters)


def _defaults(parameters: Sequence[inspect.Parameter]) -> dict[str, Any]:
    return {p.name: p.default for p in parameters if not _is_variadic(p) and not is_required(p)}


def _shown(function: Callable[..., Any], parameters: Sequence[inspect.Parameter] | None) -> str:
    """A call as it is written, without annotations and defaults."""
    name = getattr(function, "__name__", type(function).__name__)
    if parameters is None:
        return f"{name} of unknown parameters"
    stars = {"VAR_POSITIONAL": "*", "VAR_KEYWORD": "**"}
    return f"{name}({', '.join(stars.get(p.kind.name, '') + p.name for p in parameters)})"


def _options_model(target: Any) -> type | None:
    """The RewardOptions subclass that a class, or a function that makes a reward, wants as its only argument."""
    options_module = sys.modules.get("tdmr1_rewards.options")
    if options_module is None or not (inspect.isclass(target) or inspect.isfunction(target)):
        return None
    function = target.__init__ if inspect.isclass(target) else target
    try:
        hints = typing.get_type_hints(function)
    except Exception:
        hints = getattr(function, "__annotations__", {})
    hints = {name: hint for name, hint in hints.items() if name != "return"}
    for hint in hints.values():
        if isinstance(hint, type) and issubclass(hint, options_module.RewardOptions) and len(hints) == 1:
            return hint
    return None
