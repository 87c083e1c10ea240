"""Recognizes the convention of a reward from its parameter names. Nothing is called or imported.

| convention | parameters |
|---|---|
| tdmr1 | one parameter, the RewardBatch |
| flow_grpo, DiffusionNFT, ddpo | `fn(images, prompts, metadata)`; the last one or two may be missing |
| one image at a time | `fn(prompt, image)`: the image parameter is in the singular |
| TRL | a parameter `completions`, besides `prompts` and columns |
| scorer objects (imscore, ImageReward) | `.score(pixels, prompts)`, `.score(prompt, image)` |
| a factory of one of these | a function or class without arguments, or with `device` (flow_grpo's `my_score(device)`) |
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

IMAGE_ROLES: tuple[Role, ...] = ("images", "image")
ROLES: dict[str, Role] = {
    **dict.fromkeys(("images", "imgs", "pixels", "samples", "pictures"), "images"),
    **dict.fromkeys(("image", "img", "picture"), "image"),
    **dict.fromkeys(("prompts", "prompt", "captions", "caption", "texts", "text"), "prompts"),
    **dict.fromkeys(("metadata", "metadatas", "prompt_metadata"), "metadata"),
}
"""What a parameter of this name receives. Beside a single image, it is a single prompt or metadata entry."""
COMPLETIONS, DEVICE, STRICT = "completions", "device", "only_strict"
"""`only_strict` is a parameter of flow_grpo's GenEval reward; the trainer of flow_grpo passes True."""
KNOWN = (
    "a reward is fn(batch: RewardBatch), fn(images, prompts, metadata), fn(prompt, image), TRL's "
    "fn(prompts, completions, **columns), an object with .score(pixels, prompts), or a factory of one of these "
    "without arguments or with `device`"
)


@dataclass(frozen=True)
class Recognised:
    """The convention of a callable.

    `description` completes "used as …". `roles` maps parameter names to what they receive; it is empty for TRL, whose
    parameters are columns. `options` are the other parameters with their defaults; users may set them. `is_native` is
    whether it is a reward of tdmr1, or a class of such rewards. `options_model` is its RewardOptions class, if any.
    """

    style: Style
    description: str
    function: Callable[..., Any]
    roles: Mapping[str, Role] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    has_device: bool = False
    is_native: bool = False
    options_model: type | None = None


def recognise(target: Any, owner: str) -> Recognised:
    """Recognize the convention of `target`. Raises Tdmr1Error, which names `owner`, if it has none."""
    model = _options_model(target)
    if model is not None:
        description = f"a tdmr1 reward with {model.__name__}"
        return Recognised("factory", description, target, is_native=True, options_model=model)
    if inspect.isclass(target):
        return _recognise_class(target, owner)
    signatures = []
    for function, is_score in ((target, False), (getattr(target, "score", None), True)):
        if not callable(function):
            continue
        parameters = parameters_of(function)
        found = _recognise_function(function, parameters, is_score=is_score)
        if found is not None:
            return found
        signatures.append(_signature(function, parameters))
    if not signatures:
        raise _unknown(f"{owner} is a {type(target).__name__}, which cannot be called", owner)
    raise _unknown(f"{owner} is {' and '.join(signatures)}, which matches no supported convention of rewards", owner)


def _unknown(message: str, owner: str, hint: str = KNOWN) -> Tdmr1Error:
    return Tdmr1Error(message, hint, code="reward-signature", values={"reward": owner})


def parameters_of(function: Callable[..., Any]) -> list[inspect.Parameter] | None:
    """The parameters of a callable; None if Python cannot determine them, as for some C functions."""
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return None


def is_required(parameter: inspect.Parameter) -> bool:
    """Whether a call must pass this parameter."""
    return parameter.default is parameter.empty and not _is_variadic(parameter)


def _recognise_class(target: type, owner: str) -> Recognised:
    """A class is a factory; the convention is that of its objects."""
    constructor = parameters_of(target)
    if constructor is None or not _needs_at_most_device(constructor):
        raise _unknown(
            f"{owner} is {_signature(target, constructor)}, which requires more than a device",
            owner,
            "give the other parameters defaults, or use one RewardOptions class",
        )
    for name in ("__call__", "score"):
        method = next((vars(base)[name] for base in target.__mro__ if name in vars(base)), None)
        if method is None:
            continue
        parameters = (parameters_of(method) or [])[1:]
        found = _recognise_function(method, parameters, is_score=name == "score")
        if found is not None and found.style != "factory":
            description = f"a class that makes {found.description}"
            options, has_device = _defaults(constructor), _has_device(constructor)
            return Recognised("factory", description, target, {}, options, has_device, found.is_native)
    raise _unknown(f"the objects of {owner} match no supported convention of rewards", owner)


def _recognise_function(
    function: Callable[..., Any], parameters: list[inspect.Parameter] | None, *, is_score: bool
) -> Recognised | None:
    """The convention of a function, or of a method `score` (`is_score`); None if it has none."""
    if parameters is None:
        return None
    signature = _signature(function, parameters)
    required = [p for p in parameters if is_required(p)]
    other = _defaults([p for p in parameters if p.name not in ROLES and p.name not in (COMPLETIONS, STRICT)])
    if any(p.name == COMPLETIONS for p in parameters):
        return Recognised("trl", f"a TRL-style function, {signature}", function, options=other)
    roles = _roles(parameters)
    if set(IMAGE_ROLES) & set(roles.values()) and all(p.name in roles or p.name == STRICT for p in required):
        if is_score:
            return Recognised("scorer", f"a scorer object, .{signature}", function, roles, other)
        kind = "a function of one image at a time" if "image" in roles.values() else "a flow_grpo-style function"
        return Recognised("flow_grpo", f"{kind}, {signature}", function, roles, other)
    if is_score:
        return None
    if _needs_at_most_device(parameters) and not (parameters and all(map(_is_variadic, parameters))):
        options, has_device = _defaults(parameters), _has_device(parameters)
        return Recognised("factory", f"a factory, {signature}", function, {}, options, has_device)
    if len(required) == 1 and required[0].name not in ROLES and required[0].kind is not inspect.Parameter.KEYWORD_ONLY:
        options = other if inspect.isfunction(function) else {}
        return Recognised("tdmr1", f"a tdmr1 reward, {signature}", function, {}, options, is_native=True)
    return None


def _roles(parameters: Sequence[inspect.Parameter]) -> dict[str, Role]:
    """The parameters that receive images, prompts and metadata.

    Of the image parameters these are the required ones, or the first if all have defaults.
    """
    images = [p for p in parameters if ROLES.get(p.name) in IMAGE_ROLES]
    passed = {p.name for p in images if is_required(p)} or {p.name for p in images[:1]}
    passed |= {p.name for p in parameters if ROLES.get(p.name) in ("prompts", "metadata")}
    return {p.name: ROLES[p.name] for p in parameters if p.name in passed}


def _is_variadic(parameter: inspect.Parameter) -> bool:
    return parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)


def _has_device(parameters: Sequence[inspect.Parameter]) -> bool:
    return any(parameter.name == DEVICE for parameter in parameters)


def _needs_at_most_device(parameters: Sequence[inspect.Parameter]) -> bool:
    return all(not is_required(p) or p.name == DEVICE for p in parameters)


def _defaults(parameters: Sequence[inspect.Parameter]) -> dict[str, Any]:
    return {p.name: p.default for p in parameters if not _is_variadic(p) and not is_required(p)}


def _signature(function: Callable[..., Any], parameters: Sequence[inspect.Parameter] | None) -> str:
    """The signature without annotations and defaults, such as "score(images, prompts)"."""
    name = getattr(function, "__name__", type(function).__name__)
    if parameters is None:
        return f"{name} with unknown parameters"
    stars = {"VAR_POSITIONAL": "*", "VAR_KEYWORD": "**"}
    return f"{name}({', '.join(stars.get(p.kind.name, '') + p.name for p in parameters)})"


def _options_model(target: Any) -> type | None:
    """The RewardOptions class that is the only parameter of a class or function; None if there is none."""
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
