"""What a reward provides besides its spec: its options, the modules that it lacks, and its examples.

Each is read in the environment in which the reward runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tdmr1_rewards.api import RewardExample, RewardSpec
from tdmr1_rewards.calling.reference import call_named, resolve
from tdmr1_rewards.calling.wire import decode_image, encode_image, plain
from tdmr1_rewards.errors import Tdmr1Error
from tdmr1_rewards.registry import Availability, RegisteredReward, availability
from tdmr1_rewards.sources.signatures import recognise
from tdmr1_rewards.sources.source import source_of
from tdmr1_rewards.texts.redaction import redact_tree

PLAIN = (str, int, float, bool, list, dict, type(None))


@dataclass(frozen=True)
class Option:
    """An option of a reward. `default` is plain data; it is None if the option is required."""

    name: str
    required: bool
    default: Any
    meaning: str


@dataclass(frozen=True)
class RewardDescription:
    """The options of a reward, and whether the modules that it requires are installed."""

    options: list[Option]
    available: Availability


def describe_reward(registered: RegisteredReward, python: Path | None = None) -> RewardDescription:
    """Describe a reward here, or in the environment of `python`. Raises Tdmr1Error if its options cannot be loaded."""
    if python is None:
        return RewardDescription(_options(registered), availability(registered.spec))
    from tdmr1_rewards.sources.elsewhere import ask_about

    answer = ask_about(registered, source_of(registered), "options", python)
    missing = Availability(tuple(answer["missing"]), registered.spec.install)
    return RewardDescription([Option(**option) for option in answer["options"]], missing)


def load_examples(registered: RegisteredReward, python: Path | None = None) -> list[RewardExample]:
    """The examples of a reward's spec, from the environment of `python` if it is given; empty if there are none.

    Raises Tdmr1Error if they cannot be loaded.
    """
    if registered.spec.examples is None:
        return []
    if python is None:
        return _examples(registered, registered.spec.examples)
    from tdmr1_rewards.sources.elsewhere import ask_about

    answer = ask_about(registered, source_of(registered), "examples", python)
    return [
        RewardExample(**{**document, "image": decode_image(document["image"], index)})
        for index, document in enumerate(answer["examples"])
    ]


def encode_example(example: RewardExample) -> dict[str, Any]:
    """An example as plain JSON data, with its image as in `encode_image`."""
    image, metadata = encode_image(example.image), plain(example.metadata)
    return {"image": image, "prompt": example.prompt, "good": bool(example.good), "metadata": metadata}


def _examples(registered: RegisteredReward, name: str) -> list[RewardExample]:
    examples = call_named(name, registered, remedy="correct the function, or remove `examples` from the RewardSpec")
    if not isinstance(examples, list) or not all(isinstance(example, RewardExample) for example in examples):
        raise Tdmr1Error(
            f"{registered}: {name} returned {type(examples).__name__}, not a list of RewardExample",
            "return a list of RewardExample",
            code="reward-images",
            values={"reward": registered.spec.name, "examples": name},
        )
    return examples


def _options(registered: RegisteredReward) -> list[Option]:
    """The options: the fields of the options model, or the extra parameters of a function."""
    if registered.spec.options is None:
        return _parameters(registered)
    model = resolve(registered.spec.options, registered)
    return [
        Option(
            name,
            field.is_required(),
            None if field.is_required() else _plain(name, field.get_default(call_default_factory=True)),
            field.description or "",
        )
        for name, field in model.model_fields.items()
    ]


def _parameters(registered: RegisteredReward) -> list[Option]:
    """The parameters of the object of a file or module that are options."""
    target = source_of(registered).load() if registered.taken_as else None
    if target is None or isinstance(target, RewardSpec):
        return []
    recognised = recognise(target, str(registered))
    required = [Option(name, True, None, "") for name in recognised.required]
    return required + [Option(name, False, _plain(name, default), "") for name, default in recognised.options.items()]


def _plain(name: str, value: Any) -> Any:
    """A default value as plain data for YAML and JSON, without secrets."""
    if isinstance(value, tuple | set | frozenset):
        value = list(value)
    return redact_tree({name: value if isinstance(value, PLAIN) else str(value)})[name]
