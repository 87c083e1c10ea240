"""Recognizes the convention of a reward from the names, the order and the annotations of its parameters.

| convention | parameters |
|---|---|
| tdmr1 | one parameter, the RewardBatch |
| flow_grpo, DiffusionNFT, ddpo | `fn(images, prompts, metadata)`; the last one or two may be missing |
| one image at a time | `fn(prompt, image)`: the image parameter is in the singular |
| TRL | a parameter `completions`, besides `prompts` and columns |
| scorer objects (imscore, ImageReward) | `.score(pixels, prompts)`, `.score(prompt, image)` |
| torch modules | `.score` as above, or `forward` with parameters of the above |
| a factory of one of these | no parameter for images; `device` (flow_grpo's `my_score(device)`), and options |

Nothing is called or imported. The image format is decided by, in this order:

1. the annotation of the image parameter: `torch.Tensor`, `list[PIL.Image.Image]`, `np.ndarray`;
2. its name: `pixels` are a tensor, a single `image` is a PIL image, as are TRL's `completions`;
3. the order: after the prompts, as in flow_grpo's scorers `__call__(prompt, images)`, images are PIL images;
4. the convention: with a parameter `metadata` it is that of flow_grpo's trainer, a tensor.

Otherwise it is not known, and `format_trial.py` tests it.
"""

from __future__ import annotations

import inspect
import re
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tdmr1_rewards.calling.torch_modules import is_module, is_module_class
from tdmr1_rewards.errors import Tdmr1Error
from tdmr1_rewards.sources.annotations import Annotation, read_annotations
from tdmr1_rewards.sources.image_formats import ImageForm

Style = Literal["tdmr1", "factory", "flow_grpo", "trl", "scorer"]
Role = Literal["images", "prompts", "metadata"]

SINGULAR = ("image", "img", "picture")
ROLES: dict[str, Role] = {
    **dict.fromkeys(("images", "imgs", "pixels", "samples", "pictures", *SINGULAR), "images"),
    **dict.fromkeys(("prompts", "prompt", "captions", "caption", "texts", "text"), "prompts"),
    **dict.fromkeys(("metadata", "metadatas", "prompt_metadata"), "metadata"),
}
"""What a parameter of this name receives."""
PIXELS = "pixels"
COMPLETIONS, DEVICE, STRICT = "completions", "device", "only_strict"
"""`only_strict` is a parameter of flow_grpo's GenEval reward; the trainer of flow_grpo passes True."""
PLAIN_VALUES = r"(?:\w+\.)*(str|int|float|bool|dict|Dict|Mapping|list|List|Sequence|tuple|Tuple|Path)\b"
"""Annotations of parameters that are options of a factory."""
KNOWN = (
    "a reward is fn(batch: RewardBatch), fn(images, prompts, metadata), fn(prompt, image), TRL's "
    "fn(prompts, completions, **columns), an object with .score(pixels, prompts), or a factory of one of these "
    "without arguments or with `device`"
)


@dataclass(frozen=True)
class Recognised:
    """The convention of a callable.

    `description` completes "used as …". `roles` maps parameter names to what they receive; it is empty for TRL, whose
    parameters are columns. `single` are those that receive one entry, not a list of N; if it is not empty, the function
    is called once for each image. `lists` are those that must receive a list. `image_form` is the declared format of
    the images; None if there are none, or if it is not declared. `options` are the other parameters with their
    defaults, and `required` those without default; users may set them. `is_native` is whether it is a reward of tdmr1,
    or a class of such rewards. `options_model` is its RewardOptions class, if any.
    """

    style: Style
    description: str
    function: Callable[..., Any]
    roles: Mapping[str, Role] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    has_device: bool = False
    is_native: bool = False
    options_model: type | None = None
    required: Sequence[str] = ()
    single: frozenset[str] = frozenset()
    lists: frozenset[str] = frozenset()
    image_form: ImageForm | None = None


def recognise(target: Any, owner: str) -> Recognised:
    """Recognize the convention of `target`. Raises Tdmr1Error, which names `owner`, if it has none."""
    model = _options_model(target)
    if model is not None:
        description = f"a tdmr1 reward with {model.__name__}"
        return Recognised("factory", description, target, is_native=True, options_model=model)
    if inspect.isclass(target):
        return _recognise_class(target, owner)
    signatures = []
    for function, method in _candidates(target):
        parameters = parameters_of(function)
        found = _recognise_function(function, parameters, owner, method=method)
        if found is not None:
            return replace(found, function=target) if method == "forward" else found
        signatures.append(_signature(function, parameters))
    if not signatures:
        raise _unknown(f"{owner} is a {type(target).__name__}, which cannot be called", owner)
    raise _unknown(f"{owner} is {' and '.join(signatures)}, which matches no supported convention of rewards", owner)


def _candidates(target: Any) -> list[tuple[Callable[..., Any], str]]:
    """The callables that may be the reward, with the name of the method: the object itself (""), `score`, `forward`.

    The `__call__` of a torch module has no named parameters; its `forward` has them.
    """
    found = [(target, "")] if callable(target) else []
    found += [(target.score, "score")] if callable(getattr(target, "score", None)) else []
    if hasattr(target, "forward") and is_module(target) and not _has_own_call(type(target)):
        found = [*found[1:], (target.forward, "forward")]
    return found


def _has_own_call(kind: type) -> bool:
    """Whether a class of torch modules has another `__call__` than torch's."""
    return any("__call__" in vars(base) for base in kind.__mro__ if not base.__module__.startswith("torch."))


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
    if constructor is None:
        raise _unknown(f"{owner} is {_signature(target, constructor)}", owner)
    names = ["__call__", "score"]
    if is_module_class(target) and not _has_own_call(target):
        names = ["score", "forward"]
    for name in names:
        method = next((vars(base)[name] for base in target.__mro__ if name in vars(base)), None)
        if method is None:
            continue
        parameters = (parameters_of(method) or [])[1:]
        found = _recognise_function(method, parameters, owner, method=name)
        if found is not None and found.style != "factory":
            return replace(
                found,
                style="factory",
                description=f"a class that makes {found.description}",
                function=target,
                options=_defaults(constructor),
                required=_required_options(constructor),
                has_device=_has_device(constructor),
            )
    raise _unknown(f"the objects of {owner} match no supported convention of rewards", owner)


def _recognise_function(
    function: Callable[..., Any], parameters: list[inspect.Parameter] | None, owner: str, *, method: str = ""
) -> Recognised | None:
    """The convention of a function or of the method of an object; None if it has none.

    Raises Tdmr1Error if it takes images in a form that no reward receives, such as files.
    """
    if parameters is None:
        return None
    signature = _signature(function, parameters)
    options = _defaults([p for p in parameters if p.name not in ROLES and p.name not in (COMPLETIONS, STRICT)])
    if any(p.name == COMPLETIONS for p in parameters):
        return Recognised("trl", f"a TRL-style function, {signature}", function, options=options, image_form="pil")
    roles = _roles(parameters)
    required = [p for p in parameters if is_required(p)]
    if "images" in roles.values() and all(p.name in roles or p.name == STRICT for p in required):
        return _of_images(function, parameters, roles, options, owner, method)
    first = required[0] if len(required) == 1 else None
    if method == "score" or (method == "forward" and (first is None or first.name != "batch")):
        return None
    if _is_factory(parameters, required):
        defaults, missing = _defaults(parameters), _required_options(parameters)
        has_device = _has_device(parameters)
        return Recognised("factory", f"a factory, {signature}", function, {}, defaults, has_device, required=missing)
    if first is not None and first.name not in ROLES and first.kind is not inspect.Parameter.KEYWORD_ONLY:
        options = options if inspect.isfunction(function) else {}
        return Recognised("tdmr1", f"a tdmr1 reward, {signature}", function, {}, options, is_native=True)
    return None


def _of_images(
    function: Callable[..., Any],
    parameters: Sequence[inspect.Parameter],
    roles: Mapping[str, Role],
    options: Mapping[str, Any],
    owner: str,
    method: str,
) -> Recognised:
    """The convention of a function that receives images under a known name."""
    annotations = read_annotations(function)
    images = [name for name, role in roles.items() if role == "images"]
    said = {name: annotations.get(name, Annotation()) for name in roles}
    for name in images:
        if said[name].is_file:
            raise _unknown(
                f"{owner} declares {name} as {said[name].text}, but a reward receives PIL images, arrays or tensors",
                owner,
                "write a function of a batch that saves the images and calls it",
            )
    many = {name: said[name].many for name in roles}
    single = {name for name in images if many[name] is False or (many[name] is None and name in SINGULAR)}
    single |= {name for name, role in roles.items() if role == "prompts" and many[name] is False}
    if single:
        single |= {name for name, role in roles.items() if role != "images" and not many[name]}
    signature = _signature(function, parameters)
    kind = "a function of one image at a time" if single else "a flow_grpo-style function"
    description = f"a torch module, {signature}" if method == "forward" else f"{kind}, {signature}"
    return Recognised(
        "scorer" if method == "score" else "flow_grpo",
        f"a scorer object, .{signature}" if method == "score" else description,
        function,
        roles,
        options,
        single=frozenset(single),
        lists=frozenset(name for name in roles if many[name]),
        image_form=_declared_form(roles, said, images[0]),
    )


def _declared_form(roles: Mapping[str, Role], said: Mapping[str, Annotation], images: str) -> ImageForm | None:
    """The image format that a function declares; see the list at the top. Of several formats, a tensor is preferred."""
    forms = said[images].forms
    if forms:
        return "tensor" if "tensor" in forms else forms[0]
    if images == PIXELS:
        return "tensor"
    if images in SINGULAR:
        return "pil"
    order = list(roles)
    prompts = [name for name, role in roles.items() if role == "prompts"]
    if prompts and order.index(prompts[0]) < order.index(images):
        return "pil"
    return "tensor" if "metadata" in roles.values() else None


def _is_factory(parameters: Sequence[inspect.Parameter], required: Sequence[inspect.Parameter]) -> bool:
    """Whether a function without images makes a reward.

    It does so with no required parameters, with `device`, or if plain values such as numbers and texts are declared.
    """
    if parameters and all(map(_is_variadic, parameters)):
        return False
    if any(p.name in ROLES for p in required):
        return False
    return not required or _has_device(parameters) or all(_is_plain_value(p) for p in required)


def _is_plain_value(parameter: inspect.Parameter) -> bool:
    """Whether the annotation of a parameter is a number, a text, a path, or a list or dict."""
    annotation = parameter.annotation
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return annotation is not parameter.empty and re.match(PLAIN_VALUES, text) is not None


def _roles(parameters: Sequence[inspect.Parameter]) -> dict[str, Role]:
    """The parameters that receive images, prompts and metadata, in order.

    Of the image parameters these are the required ones, or the first if all have defaults.
    """
    images = [p for p in parameters if ROLES.get(p.name) == "images"]
    passed = {p.name for p in images if is_required(p)} or {p.name for p in images[:1]}
    passed |= {p.name for p in parameters if ROLES.get(p.name) in ("prompts", "metadata")}
    return {p.name: ROLES[p.name] for p in parameters if p.name in passed}


def _is_variadic(parameter: inspect.Parameter) -> bool:
    return parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)


def _has_device(parameters: Sequence[inspect.Parameter]) -> bool:
    return any(parameter.name == DEVICE for parameter in parameters)


def _required_options(parameters: Sequence[inspect.Parameter]) -> tuple[str, ...]:
    return tuple(p.name for p in parameters if is_required(p) and p.name != DEVICE)


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
