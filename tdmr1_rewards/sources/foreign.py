"""Adapts rewards of other toolkits without changes to their code. `signatures.py` lists the conventions.

Images: a parameter `images` or `pixels` receives a float tensor (N, 3, H, W) in [0, 1] on the reward's device, as in
flow_grpo, DiffusionNFT and imscore; without torch, it receives a uint8 array (N, H, W, 3), which flow_grpo also
accepts. TRL's `completions` are a list of PIL images. With a parameter `image`, the function is called once for each
PIL image. The option `image_format` (tensor, array or pil) overrides this.

Scores: a list, array or tensor of shape (N,) or (N, 1), alone or first in a tuple. Of a mapping, such as that of
flow_grpo's multi_score, the entry "avg" is used. In the convention of flow_grpo a score of -10 means "not scored" and
becomes None. What follows the scores in a tuple becomes the details, if it has one entry per image. Gradients are
disabled.
"""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import inspect
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from numbers import Real
from typing import Any, Literal, get_args

from tdmr1_rewards.api import Reward, RewardBatch, RewardResult
from tdmr1_rewards.calling.reference import build_failed
from tdmr1_rewards.errors import Tdmr1Error, close_match_hint
from tdmr1_rewards.sources.signatures import (
    COMPLETIONS,
    DEVICE,
    KNOWN,
    STRICT,
    Recognised,
    is_required,
    parameters_of,
    recognise,
)

ImageForm = Literal["tensor", "array", "pil"]
IMAGE_FORMAT = "image_format"
UNSCORED = -10
"""The score of flow_grpo for an image that a reward does not judge."""


def adapt(target: Any, options: Mapping[str, Any] | None = None, *, owner: str | None = None) -> Reward:
    """Make a Reward from `target`. A Reward is returned unchanged.

    `options` are arguments for a factory or class, or for the other parameters of a function; `image_format` selects
    the form of the images. If there is a RewardOptions class, it validates them. `owner` names the reward in errors. A
    factory with a parameter `device` is called by `setup`, other factories immediately. Raises Tdmr1Error for an
    unknown convention, and for wrong options.
    """
    owner = owner or str(getattr(target, "__name__", type(target).__name__))
    recognised = recognise(target, owner)
    if recognised.options_model is not None:
        from tdmr1_rewards.calling.reference import validate_options

        validated: Any = validate_options(recognised.options_model, options or {}, owner)
        return _call_factory(functools.partial(target, validated), None, owner)
    arguments = _checked_options(options or {}, recognised, owner)
    image_form = arguments.pop(IMAGE_FORMAT, None)
    if recognised.style == "tdmr1":
        return functools.partial(target, **arguments) if arguments else target
    if recognised.style != "factory":
        return ForeignReward(recognised, arguments, image_form, owner)
    factory = functools.partial(recognised.function, **arguments)
    if recognised.has_device and DEVICE not in arguments:
        return _FactoryReward(factory, image_form, owner)
    return _call_factory(factory, image_form, owner)


class ForeignReward:
    """A reward of another toolkit with the interface of a Reward; `adapt` creates it.

    `description` is the recognized convention.
    """

    def __init__(
        self, recognised: Recognised, options: Mapping[str, Any], image_form: ImageForm | None, owner: str
    ) -> None:
        self.description = recognised.description
        self._style = recognised.style
        self._function = recognised.function
        self._roles = recognised.roles
        self._parameters = parameters_of(recognised.function) or []
        self._options = {**self._trainer_arguments(), **options}
        self._one_by_one = "image" in recognised.roles.values()
        takes_pil = self._one_by_one or self._style == "trl"
        self._image_form: ImageForm = image_form or ("pil" if takes_pil else _default_image_form())
        self._owner = owner
        self._device = "cpu"

    def setup(self, device: str) -> None:
        """Set the device of image tensors."""
        self._device = device

    def __call__(self, batch: RewardBatch) -> RewardResult:
        """Score PIL images or one uint8 array (N, H, W, 3). Unless the function takes PIL images, all need one size.

        Raises Tdmr1Error if the answer has no scores, or if a TRL function needs a column that no prompt has.
        """
        with _without_gradients():
            if self._style == "trl":
                answer: Any = self._function(**self._columns(batch))
                answer = _wait_for(answer) if inspect.isawaitable(answer) else answer
            elif self._one_by_one:
                answer = [_first(self._call(batch.select([i]))) for i in range(len(batch))]
            else:
                answer = self._call(batch)
        scores, details = read_answer(answer, len(batch), self._owner)
        if self._style == "flow_grpo":
            scores = [None if score == UNSCORED else score for score in scores]
        return RewardResult(scores, details)

    def _call(self, batch: RewardBatch) -> Any:
        """Call the function with lists, or with the first entries if it takes one image at a time."""
        inputs: dict[str, Any] = {"prompts": list(batch.prompts), "metadata": [dict(entry) for entry in batch.metadata]}
        inputs["images"] = inputs["image"] = convert_images(batch.images, self._image_form, self._device)
        values = {name: inputs[role] for name, role in self._roles.items()}
        if self._one_by_one:
            values = {name: value[:1] if self._is_tensor(value) else value[0] for name, value in values.items()}
        positional = [values.pop(p.name) for p in self._parameters if p.kind is p.POSITIONAL_ONLY and p.name in values]
        return self._function(*positional, **values, **self._options)

    def _columns(self, batch: RewardBatch) -> dict[str, Any]:
        """The arguments of a TRL function: prompts, completions, and a column per metadata key (None if absent)."""
        keys = dict.fromkeys(key for entry in batch.metadata for key in entry)
        columns: dict[str, Any] = {key: [entry.get(key) for entry in batch.metadata] for key in keys}
        columns["prompts"] = list(batch.prompts)
        columns[COMPLETIONS] = convert_images(batch.images, self._image_form, self._device)
        columns.update(self._options)
        missing = [p.name for p in self._parameters if is_required(p) and p.name not in columns]
        if missing:
            raise Tdmr1Error(
                f"{self._owner} needs the column {missing[0]!r}, but no prompt has this metadata key",
                "use a .jsonl prompt file with this key",
                code="reward-metadata",
                values={"reward": self._owner, "key": missing[0]},
            )
        if any(p.kind is p.VAR_KEYWORD for p in self._parameters):
            return columns
        return {p.name: columns[p.name] for p in self._parameters if p.name in columns}

    def _trainer_arguments(self) -> dict[str, Any]:
        """Required arguments that the trainer of the other toolkit passes."""
        return {STRICT: True} if any(p.name == STRICT and is_required(p) for p in self._parameters) else {}

    @staticmethod
    def _is_tensor(value: Any) -> bool:
        return hasattr(value, "detach")


class _FactoryReward:
    """A factory with a parameter `device`. `setup` calls it, and then its reward is used."""

    def __init__(self, factory: Callable[..., Any], image_form: ImageForm | None, owner: str) -> None:
        self._factory = factory
        self._image_form = image_form
        self._owner = owner
        self._reward: Any = None

    def setup(self, device: str) -> None:
        """Call the factory and set up its reward."""
        self._reward = _call_factory(functools.partial(self._factory, device=device), self._image_form, self._owner)
        if hasattr(self._reward, "setup"):
            self._reward.setup(device)

    def __call__(self, batch: RewardBatch) -> RewardResult:
        """Score with the reward of the factory; calls `setup("cpu")` first if that has not been called."""
        if self._reward is None:
            self.setup("cpu")
        result: RewardResult = self._reward(batch)
        return result

    def __getattr__(self, name: str) -> Any:
        """The state methods of the reward, if it has them."""
        if name in ("state_dict", "load_state_dict") and self._reward is not None:
            return getattr(self._reward, name)
        raise AttributeError(name)

    def close(self) -> None:
        """Close the reward, if it has a `close`."""
        if hasattr(self._reward, "close"):
            self._reward.close()


def read_answer(answer: Any, count: int, owner: str) -> tuple[list[Any], list[dict[str, Any]] | None]:
    """Read scores and details from the answer of a foreign reward for `count` images.

    The number of scores is not checked. Raises Tdmr1Error if the answer has no scores.
    """
    scores, info = answer, None
    if isinstance(answer, tuple) and answer and not isinstance(answer[0], Real | None):
        scores, info = answer[0], answer[1] if len(answer) > 1 else None
    if isinstance(scores, Mapping):
        if "avg" not in scores:
            keys = list(map(str, scores))
            raise Tdmr1Error(
                f"{owner} returned a mapping with the keys {', '.join(keys)}, but without 'avg'",
                "return the scores, or a mapping with the key 'avg'",
                code="reward-result",
                values={"reward": owner, "keys": keys},
            )
        scores, info = scores["avg"], {name: values for name, values in scores.items() if name != "avg"}
    if scores is None:
        raise Tdmr1Error(
            f"{owner} returned None instead of scores",
            "check that it returns the scores that it computes",
            code="reward-result",
            values={"reward": owner, "type": "NoneType"},
        )
    return [_number(score) for score in _listed(scores)], _details(info, count)


def convert_images(images: Any, form: ImageForm, device: str) -> Any:
    """Convert PIL images or a uint8 array (N, H, W, 3) to `form`. A tensor is float (N, 3, H, W) in [0, 1]."""
    import numpy as np

    if form == "pil":
        from PIL import Image

        return [image if isinstance(image, Image.Image) else Image.fromarray(image) for image in images]
    array = images if isinstance(images, np.ndarray) else np.stack([np.asarray(image) for image in images])
    if form == "array":
        return array
    import torch

    return torch.tensor(array).permute(0, 3, 1, 2).to(device).float() / 255  # (N, 3, H, W)


def _default_image_form() -> ImageForm:
    return "tensor" if importlib.util.find_spec("torch") is not None else "array"


def _checked_options(options: Mapping[str, Any], recognised: Recognised, owner: str) -> dict[str, Any]:
    """The options. Raises Tdmr1Error for an unknown option or image format."""
    known = {*recognised.options} if recognised.is_native else {*recognised.options, IMAGE_FORMAT}
    for name in options:
        if name not in known:
            hint = close_match_hint(name, known) if known else "it takes no options"
            raise Tdmr1Error(
                f"{owner} has no option {name!r}",
                hint,
                code="reward-options",
                values={"reward": owner, "options": [name]},
            )
    forms, form = get_args(ImageForm), options.get(IMAGE_FORMAT)
    if IMAGE_FORMAT not in recognised.options and form is not None and form not in forms:
        raise Tdmr1Error(
            f"{owner}: {IMAGE_FORMAT} is {form!r}, but must be one of {', '.join(forms)}",
            code="reward-options",
            values={"reward": owner, "options": [IMAGE_FORMAT], "found": form, "expected": list(forms)},
        )
    return dict(options)


def _call_factory(factory: Callable[[], Any], image_form: ImageForm | None, owner: str) -> Reward:
    """Call a factory and adapt what it returns."""
    try:
        target = factory()
    except Tdmr1Error:
        raise
    except Exception as error:
        raise build_failed(owner, error) from error
    recognised = recognise(target, f"the return value of {owner}")
    if recognised.style == "factory":
        raise Tdmr1Error(
            f"the return value of {owner} is {recognised.description}, not a reward",
            KNOWN,
            code="reward-signature",
            values={"reward": owner},
        )
    keeps_form = image_form is not None and not recognised.is_native
    return adapt(target, {IMAGE_FORMAT: image_form} if keeps_form else None, owner=owner)


def _first(answer: Any) -> Any:
    """The score of one image; it may be the first entry of a tuple."""
    return _number(answer[0] if isinstance(answer, tuple) and answer else answer)


def _number(score: Any) -> Any:
    """The only number in a tensor, array or list, as a plain number; other scores are returned unchanged."""
    if hasattr(score, "detach") or hasattr(score, "tolist") or isinstance(score, list):
        listed = _listed(score)
        return _number(listed[0]) if len(listed) == 1 else listed
    return score


def _listed(values: Any) -> list[Any]:
    """A tensor, array, other sequence or single number as a list."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().float().numpy()
    if hasattr(values, "tolist"):
        values = values.tolist()
    if isinstance(values, Sequence) and not isinstance(values, str | bytes):
        return list(values)
    return [values]


def _details(info: Any, count: int) -> list[dict[str, Any]] | None:
    """Details per image, from a mapping of columns or a list of mappings; None for anything else."""
    if isinstance(info, Mapping):
        columns = {str(name): _listed(values) for name, values in info.items()}
        columns = {name: values for name, values in columns.items() if len(values) == count}
        return [{name: values[i] for name, values in columns.items()} for i in range(count)] if columns else None
    if isinstance(info, list) and len(info) == count and all(isinstance(entry, Mapping) for entry in info):
        return [dict(entry) for entry in info]
    return None


def _wait_for(answer: Awaitable[Any]) -> Any:
    """The result of an asynchronous function, which runs in a thread of its own.

    The calling thread may run an event loop already, such as that of a notebook.
    """

    async def awaited() -> Any:
        return await answer

    def run() -> Any:
        with _without_gradients():
            return asyncio.run(awaited())

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(run).result()


@contextmanager
def _without_gradients() -> Iterator[None]:
    """Disable gradients of torch, if torch is imported."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    with torch.no_grad():
        yield
