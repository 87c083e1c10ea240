"""Every number of the settings and of the command line has a lower and an upper bound."""

import typing
from inspect import unwrap
from types import UnionType
from typing import Annotated, Union

import pytest
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from support.errors import raises

from tdmr1_cli.app import COMMANDS, GROUPS
from tdmr1_core.config import RewardConfig, RunConfig, annotations_in
from tdmr1_core.config_loading import parse_assignments, resolve
from tdmr1_core.settings.bounds import LARGEST_NUMBER, LARGEST_SEED, MOST_IMAGES, MOST_ITERATIONS

pytestmark = pytest.mark.unit

REWARD = {"rewards": [{"name": "object_count"}]}


def fields(section=RunConfig, prefix=""):
    """Every setting with its field, also those of rewards."""
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from fields(kind, f"{prefix}{name}.")
        else:
            yield prefix + name, field
    if section is RunConfig:
        yield from fields(RewardConfig, "rewards.0.")


def numbers(annotation, metadata):
    """The metadata of each number in an annotation."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        inner = [each for extra in arguments[1:] for each in getattr(extra, "metadata", [extra])]
        yield from numbers(arguments[0], [*metadata, *inner])
    elif origin in (Union, UnionType):
        for argument in arguments:
            yield from numbers(argument, metadata)
    elif annotation in (int, float):
        yield metadata


NUMBERS = {name: found for name, field in fields() if (found := list(numbers(field.annotation, field.metadata)))}


def test_every_number_of_the_settings_has_both_bounds():
    assert len(NUMBERS) > 50
    for name, found in NUMBERS.items():
        for metadata in found:
            assert [each for each in metadata if isinstance(each, Ge | Gt)], f"{name} has no lower bound"
            assert [each for each in metadata if isinstance(each, Le | Lt)], f"{name} has no upper bound"


@pytest.mark.parametrize("value", [2**63, 2**200, -(2**200), 1e308, -1e308])
def test_a_number_beyond_every_bound_is_refused_with_its_setting_and_value(value):
    for name in NUMBERS:
        with raises("setting-invalid", settings=[name]) as caught:
            resolve([REWARD, parse_assignments([f"{name}={value!r}"])])
        assert str(value)[:20] in caught.value.message


def number_options():
    """The options of every command that are numbers: their parameter, with the range."""
    callbacks = [module.command for module in COMMANDS]
    callbacks += [command.callback for group in GROUPS for command in group.app.registered_commands]
    for callback in callbacks:
        for name, annotation in typing.get_type_hints(unwrap(callback), include_extras=True).items():
            if typing.get_origin(annotation) is Annotated and {int, float} & set(annotations_in(annotation)):
                option = typing.get_args(annotation)[1]
                yield f"{callback.__module__} {name}", (option.min, option.max)


def test_every_number_of_the_command_line_has_both_bounds():
    found = dict(number_options())
    assert len(found) > 15
    unbounded = {name.rpartition(" ")[2] for name, bounds in found.items() if None in bounds}
    assert unbounded == {"iterations", "seed"}  # settings, whose bounds `RunConfig` has


@pytest.mark.parametrize(
    ("assignments", "sentence"),
    [
        (["batch.groups=1000000000000"], f"batch.groups must be an integer of at least 1 and at most {MOST_IMAGES}; "),
        (
            ["batch.group_size=1"],
            f"batch.group_size must be an integer of at least 2 and at most {MOST_IMAGES}; found 1",
        ),
        (["batch.groups=1000000", "batch.group_size=24"], "batch.groups × batch.group_size is 1000000 × 24, but an "),
        (
            ["model.height=1000000"],
            "model.height must be an integer of at least 8 and at most 16384 or null; found 1000000",
        ),
        (["model.width=-8"], "model.width must be an integer of at least 8 and at most 16384 or null; found -8"),
        (["iterations=0"], f"iterations must be an integer of at least 1 and at most {MOST_ITERATIONS}; found 0"),
        (["seed=-1"], f"seed must be an integer of at least 0 and at most {LARGEST_SEED}; found -1"),
        (
            [f"evaluation.seed={2**63}"],
            f"evaluation.seed must be an integer of at least 0 and at most {LARGEST_SEED}; ",
        ),
        (["generator.learning_rate=1.5"], "generator.learning_rate must be a number above 0 and at most 1; found 1.5"),
        (
            ["rewards.0.weight=1e308"],
            f"rewards.0.weight must be a number of at least -{LARGEST_NUMBER:.0f} and at most ",
        ),
        (["rewards.0.timeout=.nan"], "rewards.0.timeout must be a number above 0 and at most 1000000, none or null; "),
    ],
)
def test_the_sentence_has_setting_range_and_value(assignments, sentence):
    with raises("setting-invalid") as caught:
        resolve([REWARD, parse_assignments(assignments)])
    assert caught.value.message.startswith(sentence)
