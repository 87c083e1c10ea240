"""Adapts rewards of other toolkits without changes to their code. `signatures.py` lists the conventions.

Images: the function receives the format that it declares (`signatures.py`), else the one that a test finds
(`format_trial.py`). The option `image_format` (tensor, array or pil) overrides both. A function with a parameter
`image`, or one whose annotations say so, is called once for each image.

Scores: see `answers.py`. In the convention of flow_grpo a score of -10 means "not scored" and becomes None. What
follows the scores in a tuple becomes the details, if it has one entry per image. The option `column` selects the score
where an image has several numbers. Gradients are disabled. A scorer that is a torch module, or has some as attributes,
is put in evaluation mode and on the device of the reward.

Asynchronous functions are awaited, in one event loop for the whole life of the reward.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

from tdmr1_rewards.api import Reward, RewardBatch, RewardResult
from tdmr1_rewards.calling import calls
from tdmr1_rewards.calling.event_loop import EventLoop
from tdmr1_rewards.calling.reference import build_failed, validate_options
from tdmr1_rewards.calling.torch_modules import prepare_modules, without_gradients
from tdmr1_rewards.errors import Tdmr1Error, close_match_hint
from tdmr1_rewards.sources.answers import COLUMN, first_score, read_answer, without_unscored
from tdmr1_rewards.sources.format_trial import choose_form
from tdmr1_rewards.sources.image_formats import ImageForm, available, convert_images, in_words, known_forms
from tdmr1_rewards.sources.image_hints import hinting_at_images
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

IMAGE_FORMAT = "image_format"
ADAPTING = (IMAGE_FORMAT, COLUMN)
"""Options of every reward of another toolkit, which its function does not receive."""


def adapt(target: Any, options: Mapping[str, Any] | None = None, *, owner: str | None = None) -> Reward:
    """Make a Reward from `target`. A Reward is returned unchanged; its host awaits its asynchronous methods.

    `options` are arguments for a factory or class, or for the other parameters of a function; those in `ADAPTING` say
    how to call the function and how to read its answer. If there is a RewardOptions class, it validates them. `owner`
    names the reward in errors. A factory that has a parameter `device` or is asynchronous is called by `setup`, other
    factories immediately. Raises Tdmr1Error for an unknown convention, and for wrong or missing options.
    """
    owner = owner or str(getattr(target, "__name__", type(target).__name__))
    recognised = _with_options(recognise(target, owner), options or {})
    if recognised.options_model is not None:
        validated: Any = validate_options(recognised.options_model, options or {}, owner)
        build = functools.partial(target, validated)
        if inspect.iscoroutinefunction(target):
            return _FactoryReward(build, {}, owner, takes_device=False)
        return _call_factory(build, {}, owner)
    arguments, adapting = _checked_options(options or {}, recognised, owner)
    if recognised.style == "tdmr1":
        return functools.partial(target, **arguments) if arguments else target
    if recognised.style != "factory":
        return ForeignReward(recognised, arguments, adapting, owner)
    factory = functools.partial(recognised.function, **arguments)
    takes_device = recognised.has_device and DEVICE not in arguments
    if takes_device or inspect.iscoroutinefunction(recognised.function):
        made: Reward = _FactoryReward(factory, adapting, owner, takes_device=takes_device)
    else:
        made = _call_factory(factory, adapting, owner)
    return made if recognised.roles else _to_announce(made)


def adapt_registered(factory: Any, options: Mapping[str, Any] | None = None, *, owner: str) -> Reward:
    """Make the reward of a RewardSpec without options class: like `adapt`.

    A factory or object of no known convention is used as it is: called without an argument, and as a Reward.
    """
    recognised = _recognised(factory, owner)
    if recognised is None or _is_plain_factory(recognised):
        arguments, adapting = check_registered(factory, options or {}, owner=owner)
        return adapt_made(functools.partial(factory, **arguments), adapting, owner=owner)
    return _to_announce(adapt(factory, options, owner=owner))


def adapt_made(factory: Callable[[], Any], adapting: Mapping[str, Any] | None = None, *, owner: str) -> Reward:
    """Call the factory of a RewardSpec and adapt what it returns; an object of no known convention is a Reward."""
    if inspect.iscoroutinefunction(factory):
        return _FactoryReward(factory, adapting or {}, owner, takes_device=False)
    made: Any = factory()
    recognised = _recognised(made, owner)
    if recognised is None or recognised.style in ("tdmr1", "factory"):
        return made
    return _to_announce(adapt(made, adapting, owner=owner))


def _to_announce(reward: Reward) -> Reward:
    """The reward. Its note after the set-up says in which format it receives images: users do not know it before."""
    if isinstance(reward, ForeignReward | _FactoryReward):
        reward.announced = False
    return reward


def check_registered(
    factory: Any, options: Mapping[str, Any], *, owner: str
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The options of a source or RewardSpec without options class: arguments, and those in `ADAPTING`.

    Raises Tdmr1Error for options that the factory does not know, and if one that it requires is missing.
    """
    recognised = _recognised(factory, owner) or Recognised("factory", "", factory, is_native=True)
    if recognised.options_model is not None:
        validate_options(recognised.options_model, options, owner)
        return options, {}
    return _checked_options(options, _with_options(recognised, options), owner)


def _recognised(target: Any, owner: str) -> Recognised | None:
    try:
        return recognise(target, owner)
    except Tdmr1Error:
        return None


def _with_options(recognised: Recognised, options: Mapping[str, Any]) -> Recognised:
    """A function of one parameter is a factory, not a function of a batch, if an option sets this parameter."""
    if recognised.style != "tdmr1" or not inspect.isfunction(recognised.function):
        return recognised
    required = tuple(p.name for p in parameters_of(recognised.function) or () if is_required(p))
    if not set(required) & set(options):
        return recognised
    return replace(recognised, style="factory", required=required, is_native=False)


def _is_plain_factory(recognised: Recognised) -> bool:
    """Whether a factory is called immediately, with keyword arguments only."""
    asynchronous = inspect.iscoroutinefunction(recognised.function)
    return recognised.style == "factory" and not (
        asynchronous or recognised.has_device or recognised.options_model is not None
    )


class ForeignReward:
    """A reward of another toolkit with the interface of a Reward; `adapt` creates it.

    `description` is the recognized convention. `image_form` is the format of the images; None until it is tested, if
    the function does not declare one. `form_reason` says what the test found. `announced` is whether a message
    before the set-up had the format.
    """

    def __init__(
        self, recognised: Recognised, options: Mapping[str, Any], adapting: Mapping[str, Any], owner: str
    ) -> None:
        self.description = recognised.description
        self.image_form: ImageForm | None = adapting.get(IMAGE_FORMAT) or available(recognised.image_form)
        self.form_reason = ""
        self.announced = True
        self._column: int | None = adapting.get(COLUMN)
        self._recognised = recognised
        self._function = recognised.function
        self._parameters = parameters_of(recognised.function) or []
        self._options = {**self._trainer_arguments(), **options}
        self._owner = owner
        self._device = "cpu"
        self._loop = EventLoop()

    def use_loop(self, loop: EventLoop) -> None:
        """Await in this event loop, before the first call."""
        self._loop = loop

    def setup(self, device: str) -> None:
        """Set the device of image tensors, and find out the image format if it is not declared.

        A scorer that is or has torch modules moves to the device, in evaluation mode. Raises Tdmr1Error if a test does
        not decide the image format.
        """
        self._device = device
        prepare_modules(self._function, device)
        self._form()

    def __call__(self, batch: RewardBatch) -> RewardResult:
        """Score PIL images or one uint8 array (N, H, W, 3). Unless the function takes PIL images, all need one size.

        Raises Tdmr1Error if the answer has no scores, or if a TRL function needs a column that no prompt has.
        """
        return self._result(batch, self._form())

    @property
    def tdmr1_note(self) -> str | None:
        """The format of the images as a sentence, if it was not announced or not declared."""
        if self.image_form is None or (self.announced and not self.form_reason):
            return None
        form = in_words(self.image_form, single=bool(self._recognised.single))
        reason = f", by a test ({self.form_reason})" if self.form_reason else ""
        return f"it is {self.description} and receives {form}{reason}"

    def close(self) -> None:
        """End the event loop of an asynchronous function."""
        self._loop.close()

    def _form(self) -> ImageForm:
        """The image format; tested once if it is not declared."""
        if self.image_form is None:
            self.image_form, self.form_reason = choose_form(
                lambda batch, form: self._result(batch, form).scores, known_forms(), self._owner
            )
        return self.image_form

    def _result(self, batch: RewardBatch, form: ImageForm) -> RewardResult:
        with without_gradients(), hinting_at_images(form, in_words(form, single=bool(self._recognised.single))):
            if self._recognised.style == "trl":
                answer: Any = self._function(**self._columns(batch, form))
            elif self._recognised.single:
                answers = [self._call(batch.select([i]), form) for i in range(len(batch))]
                answer = [first_score(each, self._owner, self._column) for each in self._loop.results(answers)]
            else:
                answer = self._call(batch, form)
            answer = self._loop.result(answer)
            if isinstance(answer, list):  # of a function that returns one awaitable for each image
                answer = self._loop.results(answer)
        scores, details = read_answer(answer, len(batch), self._owner, self._column)
        if self._recognised.style == "flow_grpo":
            scores, details = without_unscored(scores, details)
        return RewardResult(scores, details)

    def _call(self, batch: RewardBatch, form: ImageForm) -> Any:
        """Call the function with a batch; a parameter for one image gets the first entry.

        A single image is a PIL image, an array (H, W, 3), or a tensor (1, 3, H, W).
        """
        inputs: dict[str, Any] = {"prompts": list(batch.prompts), "metadata": [dict(entry) for entry in batch.metadata]}
        inputs["images"] = convert_images(batch.images, form, self._device)
        values = {name: inputs[role] for name, role in self._recognised.roles.items()}
        for name in self._recognised.lists:
            values[name] = list(values[name])
        for name in self._recognised.single:
            values[name] = values[name][:1] if hasattr(values[name], "detach") else values[name][0]
        positional = [values.pop(p.name) for p in self._parameters if p.kind is p.POSITIONAL_ONLY and p.name in values]
        return self._function(*positional, **values, **self._options)

    def _columns(self, batch: RewardBatch, form: ImageForm) -> dict[str, Any]:
        """The arguments of a TRL function: prompts, completions, and a column per metadata key (None if absent)."""
        keys = dict.fromkeys(key for entry in batch.metadata for key in entry)
        columns: dict[str, Any] = {key: [entry.get(key) for entry in batch.metadata] for key in keys}
        columns["prompts"] = list(batch.prompts)
        columns[COMPLETIONS] = convert_images(batch.images, form, self._device)
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


class _FactoryReward:
    """A factory that `setup` calls: with a parameter `device`, or asynchronous. Then its reward is used.

    The factory and its reward share one event loop. `announced` is as in ForeignReward.
    """

    def __init__(
        self, factory: Callable[..., Any], adapting: Mapping[str, Any], owner: str, *, takes_device: bool
    ) -> None:
        self._factory = factory
        self._takes_device = takes_device
        self._loop = EventLoop()
        self._adapting = adapting
        self._owner = owner
        self._reward: Any = None
        self.announced = True

    def setup(self, device: str) -> None:
        """Call the factory and set up its reward."""
        arguments = {DEVICE: device} if self._takes_device else {}
        factory = functools.partial(self._loop.call, self._factory, **arguments)
        self._reward = _call_factory(factory, self._adapting, self._owner)
        if isinstance(self._reward, ForeignReward):
            self._reward.use_loop(self._loop)
            self._reward.announced = self.announced
        calls.set_up(self._reward, device, self._loop)

    def __call__(self, batch: RewardBatch) -> RewardResult:
        """Score with the reward of the factory; calls `setup("cpu")` first if that has not been called."""
        if self._reward is None:
            self.setup("cpu")
        result: RewardResult = calls.score(self._reward, batch, self._loop)
        return result

    def __getattr__(self, name: str) -> Any:
        """The state methods of the reward, if it has them."""
        if name in ("state_dict", "load_state_dict") and self._reward is not None:
            return getattr(self._reward, name)
        raise AttributeError(name)

    @property
    def tdmr1_note(self) -> str | None:
        """The note of the reward of the factory."""
        return getattr(self._reward, calls.NOTE, None)

    def close(self) -> None:
        """Close the reward, if it has a `close`, and the event loop."""
        try:
            calls.close(self._reward, self._loop)
        finally:
            self._loop.close()


def _checked_options(
    options: Mapping[str, Any], recognised: Recognised, owner: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options that the reward receives, and those in `ADAPTING`.

    Raises Tdmr1Error for an unknown or missing option, and for a wrong value of one in `ADAPTING`.
    """
    own = {*recognised.options, *recognised.required}
    adapting = {name for name in ADAPTING if name not in own and not recognised.is_native}
    known = own | adapting
    for name in options:
        if name not in known:
            hint = close_match_hint(name, known) if known else "it takes no options"
            raise Tdmr1Error(
                f"{owner} has no option {name!r}",
                hint,
                code="reward-options",
                values={"reward": owner, "options": [name]},
            )
    missing = [name for name in recognised.required if name not in options]
    if missing:
        raise Tdmr1Error(
            f"{owner} needs the option{'s' if len(missing) > 1 else ''} {' and '.join(map(repr, missing))}",
            f"it is {recognised.description}; set its parameters as options (`tdmr1 rewards info` lists them). {KNOWN}",
            code="reward-options",
            values={"reward": owner, "options": missing},
        )
    form, column = (options.get(name) if name in adapting else None for name in ADAPTING)
    if form is not None and form not in get_args(ImageForm):
        raise _wrong_option(owner, IMAGE_FORMAT, form, get_args(ImageForm))
    if column is not None and (not isinstance(column, int) or isinstance(column, bool) or column < 0):
        raise _wrong_option(owner, COLUMN, column, ("0", "1", "2 …"))
    arguments = {name: value for name, value in options.items() if name in own}
    return arguments, {name: value for name, value in options.items() if name in adapting}


def _wrong_option(owner: str, name: str, found: Any, expected: Sequence[str]) -> Tdmr1Error:
    return Tdmr1Error(
        f"{owner}: {name} is {found!r}, but must be one of {', '.join(expected)}",
        code="reward-options",
        values={"reward": owner, "options": [name], "found": found, "expected": list(expected)},
    )


def _call_factory(factory: Callable[[], Any], adapting: Mapping[str, Any], owner: str) -> Reward:
    """Call a factory and adapt what it returns."""
    try:
        target = factory()
    except Tdmr1Error:
        raise
    except (Exception, SystemExit) as error:
        raise build_failed(owner, error) from error
    recognised = recognise(target, f"the return value of {owner}")
    if recognised.style == "factory":
        raise Tdmr1Error(
            f"the return value of {owner} is {recognised.description}, not a reward",
            KNOWN,
            code="reward-signature",
            values={"reward": owner},
        )
    return adapt(target, {} if recognised.is_native else adapting, owner=owner)
