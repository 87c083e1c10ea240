import pickle
import re

import pytest

from tdmr1_rewards.errors import CODES, UNSPECIFIED, RewardWarning, Tdmr1Error, close_match_hint
from tdmr1_rewards.scoring.failures import RewardFailed

pytestmark = pytest.mark.unit


def test_str_is_the_message_without_the_hint():
    error = Tdmr1Error("it broke", "repair it")
    assert str(error) == error.message == "it broke"
    assert error.hint == "repair it"
    assert Tdmr1Error("it broke").hint is None


def test_an_error_without_a_code_is_unspecified():
    error = Tdmr1Error("it broke", "repair it")
    assert (error.code, error.values) == (UNSPECIFIED, {})
    assert UNSPECIFIED not in CODES


@pytest.mark.parametrize("kind", [Tdmr1Error, RewardFailed])
def test_an_error_can_be_pickled(kind):
    error = pickle.loads(pickle.dumps(kind("it broke", "repair it", code="reward-state", values={"n": 1})))
    assert type(error) is kind
    assert error.document() == {
        "code": "reward-state",
        "message": "it broke",
        "hint": "repair it",
        "values": {"n": 1},
    }


def test_default_codes_of_reward_errors_and_warnings():
    assert RewardFailed("it broke").code == "reward-failed"
    assert RewardWarning("it broke").code == "reward-skipped"


def test_codes_are_words_with_hyphens_and_have_a_meaning():
    assert 60 <= len(CODES) <= 100
    for code, meaning in CODES.items():
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", code), code
        assert meaning.endswith("."), code


@pytest.mark.parametrize(
    ("name", "known", "hint"),
    [
        ("object_cuont", ["ocr_match", "object_count"], "did you mean 'object_count'?"),
        ("zzz", ["ocr_match", "object_count"], "known: object_count, ocr_match"),
        ("zzz", [], "none is known"),
        ("lr", ["learning_rate", "beta1", "loss", "tau_min"], "did you mean 'learning_rate'?"),
        ("gs", ["groups", "group_size", "micro_batch"], "did you mean 'group_size'?"),
        ("LearningRate", ["learning_rate", "loss"], "did you mean 'learning_rate'?"),
        ("micro", ["groups", "group_size", "micro_batch"], "did you mean 'micro_batch'?"),
        ("rate", ["learning_rate", "loss"], "did you mean 'learning_rate'?"),
        ("lrate", ["learning_rate", "loss"], "did you mean 'learning_rate'?"),
        ("l", ["learning_rate", "loss"], "known: learning_rate, loss"),
        ("ta", ["tau_min", "tau_sharing"], "known: tau_min, tau_sharing"),
        ("--", ["tau_min"], "known: tau_min"),
    ],
)
def test_close_match_hint(name, known, hint):
    assert close_match_hint(name, known) == hint
