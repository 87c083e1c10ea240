from typing import Literal

import pytest
from pydantic import Field, ValidationError, field_validator
from support.errors import raises

from tdmr1_rewards.calling.reference import validate_options
from tdmr1_rewards.options import RewardOptions

pytestmark = pytest.mark.unit


class Options(RewardOptions):
    model_name: str
    min_area: float = Field(6.0, gt=0)
    score: Literal["exact", "graded"] = "exact"

    @field_validator("model_name")
    @classmethod
    def _lower(cls, value):
        if value != value.lower():
            raise ValueError("must be in lower case")
        return value


class NoOptions(RewardOptions):
    pass


def test_valid_options_are_frozen():
    options = validate_options(Options, {"model_name": "m", "min_area": 2}, "reward 'x'")
    assert (options.model_name, options.min_area, options.score) == ("m", 2.0, "exact")
    with pytest.raises(ValidationError):
        options.min_area = 3.0


def test_one_error_lists_every_wrong_option():
    wrong = {"min_area": -1, "scor": "exact", "score": "no", "zzz": 1}
    names = ["model_name", "min_area", "score", "scor", "zzz"]
    with raises("reward-options", reward="reward 'x'", options=names) as caught:
        validate_options(Options, wrong, "reward 'x'")
    assert caught.value.values["problems"] == [
        "'model_name' is required",
        "'min_area' should be greater than 0, not -1",
        "'score' should be 'exact' or 'graded', not 'no'",
        "unknown option 'scor' (did you mean 'score'?)",
        "unknown option 'zzz' (known: min_area, model_name, score)",
    ]
    assert all(problem in caught.value.message for problem in caught.value.values["problems"])
    assert caught.value.hint == "options are: model_name, min_area, score"
    assert isinstance(caught.value.__cause__, ValidationError)


def test_the_message_of_a_validator_is_kept():
    with raises("reward-options", problems=["'model_name' must be in lower case, not 'M'"]):
        validate_options(Options, {"model_name": "M"}, "reward 'x'")


def test_the_hint_for_a_reward_without_options():
    with raises("reward-options", options=["a"]) as caught:
        validate_options(NoOptions, {"a": 1}, "reward 'x'")
    assert caught.value.hint == "it takes no options"


class Numbers(RewardOptions):
    area: float = 1.0
    count: int | None = None
    anything: object = None
    either: bool | int = 0
    word: Literal["auto"] | float = "auto"


@pytest.mark.parametrize("value", [True, False])
def test_a_boolean_is_not_a_number(value):
    for name in ("area", "count", "word"):
        with raises("reward-options", options=[name]):
            validate_options(Numbers, {name: value}, "reward 'x'")
    accepted = validate_options(Numbers, {"either": value, "anything": value}, "reward 'x'")
    assert (accepted.either, accepted.anything) == (value, value)
