"""Rewards written for other toolkits, taken unchanged; `signatures.py` says which conventions are known, and how.

Pictures for a parameter `images` or `pixels` are a float tensor (N, 3, H, W) in [0, 1] on the reward's device where
torch can be imported, which is what the trainers of flow_grpo and DiffusionNFT and the users of imscore hand over;
where it cannot, a uint8 array (N, H, W, 3), which the former take too. TRL's `completions` are a list of PIL images.
A parameter `image` is one PIL image, and the function is called for each. The option `image_format` (tensor, array or
pil) decides it otherwise.

Scores may be a list, an array or a tensor, of shape (N,) or (N, 1), alone or first in a tuple; of a mapping of
several, as flow_grpo's multi_score answers, the "avg" counts. In that convention -10 means "not scored" and becomes
None. What follows the scores is kept as details where there is one entry an image. Nothing is ever differentiated.
"""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Any, Literal, get_args

from tdmr1_rewards.api import Reward, RewardBatch, RewardResult
from tdmr1_rewards.errors import Tdmr1Error, close_match_hint, describe_error
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

Pictures = Literal["tensor", "array", "pil"]
IMAGE_FORMAT = "image_format"
UNSCORED = -10
"""flow_grpo's number for an image that a reward does not judge."""


def adapt(target: Any, options: Mapping[str, Any] | None = None, *, owner: str | None = None) -> Reward:
    """`target` as a Reward; what is one already stays itself.

    `options` set the parameters of a factory or class, or those that a function has beside the known ones; and
    `image_format` says how pictures are given. Those of a RewardOptions class are validated by it. `owner` is how
    errors call it. A factory of `device` is called by `setup`, any other one at once. Raises Tdmr1Error for what no
    convention fits, and for wrong options.
    """
    owner = owner or str(getattr(target, "__name__", type(target).__name__))
    recognised = recognise(target, owner)
    if recognised.options_model is not None:
        from tdmr1_rewards.options import validate_options

        validated: Any = validate_options(recognised.options_model, options or {}, owner)
        return _made(functools.partial(target, validated), None, owner)
    chosen = _checked(options or {}, recognised, owner)
    pictures = chosen.pop(IMAGE_FORMAT, None)
    if recognised.style == "tdmr1":
        return functools.partial(target, **chosen) if chosen else target
    if recognised.style != "factory":
        return ForeignReward(recognised, chosen, pictures, owner)
    factory = functools.partial(recognised.function, **chosen)
    if recognised.has_device and DEVICE not in chosen:
        return _Deferred(factory, pictures, owner)
    return _made(factory, pictures, owner)


class ForeignReward:
    """A reward of another toolkit behind tdmr1's own call; made by `adapt`. `told` says what it was taken for."""

    def __init__(
        self, recognised: Recognised, options: Mapping[str, Any], pictures: Pictures | None, owner: str
    ) -> None:
        self.told = recognised.told
        self._style = recognised.style
        self._function = recognised.function
        self._roles = recognised.roles
        self._parameters = parameters_of(recognised.function) or []
        self._options = {**self._implied(), **options}
        self._one_by_one = "image" in recognised.roles.values()
        singly = self._one_by_one or self._style == "trl"
        self._pictures: Pictures = pictures or ("pil" if singly else _usual_pictures())
        self._owner = owner
        self._device = "cpu"

    def setup(self, device: str) -> None:
        """Remember where tensors go."""
        self._device = device

    def __call__(self, batch: RewardBatch) -> RewardResult:
        """Score PIL images or one uint8 array (N, H, W, 3); of one size, unless the function takes PIL images."""
        with _without_gradients():
            if self._style == "trl":
                answer: Any = self._function(**self._columns(batch))
                answer = asyncio.run(_awaited(answer)) if inspect.isawaitable(answer) else answer
            elif self._one_by_one:
                answer = [_first(self._ask(batch.select([i]))) for i in range(len(batch))]
            else:
                answer = self._ask(batch)
        scores, details = read_answer(answer, len(batch), self._owner)
        if self._style == "flow_grpo":
            scores = [None if score == UNSCORED else score for score in scores]
        return RewardResult(scores, details)

    def _ask(self, batch: RewardBatch) -> Any:
        """Call it with what its parameters are given: lists, or the only entry where it takes one picture."""
        given: dict[str, Any] = {"prompts": list(batch.prompts), "metadata": [dict(entry) for entry in batch.metadata]}
        given["images"] = given["image"] = as_pictures(batch.images, self._pictures, self._device)
        values = {name: given[role] for name, role in self._roles.items()}
        if self._one_by_one:
            values = {name: value[:1] if self._is_tensor(value) else value[0] for name, value in values.items()}
        positional = [values.pop(p.name) for p in self._parameters if p.kind is p.POSITIONAL_ONLY and p.name in values]
        return self._function(*positional, **values, **self._options)

    def _columns(self, batch: RewardBatch) -> dict[str, Any]:
        """TRL's keyword arguments: prompts, completions, and the metadata's keys as columns, None where absent."""
        keys = dict.fromkeys(key for entry in batch.metadata for key in entry)
        columns: dict[str, Any] = {key: [entry.get(key) for entry in batch.metadata] for key in keys}
        columns["prompts"] = list(batch.prompts)
        columns[COMPLETIONS] = as_pictures(batch.images, self._pictures, self._device)
        columns.update(self._options)
        missing = [p.name for p in self._parameters if is_required(p) and p.name not in columns]
        if missing:
            raise Tdmr1Error(
                f"{self._owner} asks for the column {missing[0]!r}, which no prompt's metadata has",
                "use a .jsonl prompt file that has it as a key",
            )
        if any(p.kind is p.VAR_KEYWORD for p in self._parameters):
            return columns
        return {p.name: columns[p.name] for p in self._parameters if p.name in columns}

    def _implied(self) -> dict[str, Any]:
        """What a function asks for that its own trainer would pass."""
        return {STRICT: True} if any(p.name == STRICT and is_required(p) for p in self._parameters) else {}

    @staticmethod
    def _is_tensor(value: Any) -> bool:
        return hasattr(value, "detach")


class _Deferred:
    """A factory that wants the device: it is called by `setup`, and what it makes is used from then on."""

    def __init__(self, factory: Callable[..., Any], pictures: Pictures | None, owner: str) -> None:
        self._factory = factory
        self._pictures = pictures
        self._owner = owner
        self._reward: Any = None

    def setup(self, device: str) -> None:
        """Call the factory and set up what it makes."""
        self._reward = _made(functools.partial(self._factory, device=device), self._pictures, self._owner)
        if hasattr(self._reward, "setup"):
            self._reward.setup(device)

    def __call__(self, batch: RewardBatch) -> RewardResult:
        """Score as what was made does."""
        if self._reward is None:
            self.setup("cpu")
        result: RewardResult = self._reward(batch)
        return result

    def __getattr__(self, name: str) -> Any:
        """What was made may have a state."""
        if name in ("state_dict", "load_state_dict") and self._reward is not None:
            return getattr(self._reward, name)
        raise AttributeError(name)

    def close(self) -> None:
        """Close what was made, if it can be."""
        if hasattr(self._reward, "close"):
            self._reward.close()


def read_answer(answer: Any, count: int, owner: str) -> tuple[list[Any], list[dict[str, Any]] | None]:
    """Scores and details out of what a foreign reward answers about `count` images.

    Whether there are as many as images is for the caller to check. Raises Tdmr1Error where no scores can be seen.
    """
    scores, info = answer, None
    if isinstance(answer, tuple) and answer and not isinstance(answer[0], Real | None):
        scores, info = answer[0], answer[1] if len(answer) > 1 else None
    if isinstance(scores, Mapping):
        if "avg" not in scores:
            raise Tdmr1Error(f"{owner} answered a mapping of {', '.join(map(str, scores))}, without the key 'avg'")
        scores, info = scores["avg"], {name: values for name, values in scores.items() if name != "avg"}
    if scores is None:
        raise Tdmr1Error(f"{owner} answered None instead of scores", "does it return what it has computed?")
    return [_number(score) for score in _listed(scores)], _details(info, count)


def as_pictures(images: Any, form: Pictures, device: str) -> Any:
    """PIL images or a uint8 array (N, H, W, 3) in the form asked for; a tensor is float (N, 3, H, W) in [0, 1]."""
    import numpy as np

    if form == "pil":
        from PIL import Image

        return [image if isinstance(image, Image.Image) else Image.fromarray(image) for image in images]
    array = images if isinstance(images, np.ndarray) else np.stack([np.asarray(image) for image in images])
    if form == "array":
        return array
    import torch

    return torch.tensor(array).permute(0, 3, 1, 2).to(device).float() / 255


def _usual_pictures() -> Pictures:
    return "tensor" if importlib.util.find_spec("torch") is not None else "array"


def _checked(options: Mapping[str, Any], recognised: Recognised, owner: str) -> dict[str, Any]:
    """The options, if all are known. Raises Tdmr1Error otherwise."""
    known = {*recognised.options} if recognised.is_native else {*recognised.options, IMAGE_FORMAT}
    for name in options:
        if name not in known:
            hint = close_match_hint(name, known) if known else "it takes no options"
            raise Tdmr1Error(f"{owner} has no option {name!r}", hint)
    forms, chosen = get_args(Pictures), options.get(IMAGE_FORMAT)
    if IMAGE_FORMAT not in recognised.options and chosen is not None and chosen not in forms:
        raise Tdmr1Error(f"{owner}: {IMAGE_FORMAT} is {chosen!r}, but must be one of {', '.join(forms)}")
    return dict(options)


def _made(factory: Callable[[], Any], pictures: Pictures | None, owner: str) -> Reward:
    """What a factory makes, as a Reward."""
    try:
        made = factory()
    except Tdmr1Error:
        raise
    except Exception as error:
        raise Tdmr1Error(f"{owner} could not be built: {describe_error(error)}") from error
    recognised = recognise(made, f"what {owner} makes")
    if recognised.style == "factory":
        raise Tdmr1Error(f"what {owner} makes is {recognised.told}, and not yet a reward", KNOWN)
    keeps_format = pictures is not None and not recognised.is_native
    return adapt(made, {IMAGE_FORMAT: pictures} if keeps_format else None, owner=owner)


def _first(answer: Any) -> Any:
    """The score of one picture, which may come with an info."""
    return _number(answer[0] if isinstance(answer, tuple) and answer else answer)


def _number(score: Any) -> Any:
    """A score as a plain number where it is the only one in a tensor, an array or a list; else as it is."""
    if hasattr(score, "detach") or hasattr(score, "tolist") or isinstance(score, list):
        listed = _listed(score)
        return _number(listed[0]) if len(listed) == 1 else listed
    return score


def _listed(values: Any) -> list[Any]:
    """A list out of a tensor, an array, any other sequence or a single number."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().float().numpy()
    if hasattr(values, "tolist"):
        values = values.tolist()
    if isinstance(values, Sequence) and not isinstance(values, str | bytes):
        return list(values)
    return [values]


def _details(info: Any, count: int) -> list[dict[str, Any]] | None:
    """What is said of each image: a mapping of columns, or a list of mappings; else nothing."""
    if isinstance(info, Mapping):
        columns = {str(name): _listed(values) for name, values in info.items()}
        columns = {name: values for name, values in columns.items() if len(values) == count}
        return [{name: values[i] for name, values in columns.items()} for i in range(count)] if columns else None
    if isinstance(info, list) and len(info) == count and all(isinstance(entry, Mapping) for entry in info):
        return [dict(entry) for entry in info]
    return None


async def _awaited(answer: Any) -> Any:
    return await answer


@contextmanager
def _without_gradients() -> Iterator[None]:
    """No graph is recorded while this lasts; torch is not imported for it."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    with torch.no_grad():
        yield
