import pickle

import pytest

from tdmr1_rewards.errors import Tdmr1Error, close_match_hint

pytestmark = pytest.mark.unit


def test_str_is_the_message_and_the_hint_is_apart():
    error = Tdmr1Error("it broke", "mend it")
    assert str(error) == error.message == "it broke"
    assert error.hint == "mend it"
    assert Tdmr1Error("it broke").hint is None


def test_survives_the_way_between_processes():
    error = pickle.loads(pickle.dumps(Tdmr1Error("it broke", "mend it")))
    assert (error.message, error.hint) == ("it broke", "mend it")


@pytest.mark.parametrize(
    ("name", "known", "hint"),
    [
        ("object_cuont", ["ocr_match", "object_count"], "did you mean 'object_count'?"),
        ("zzz", ["ocr_match", "object_count"], "known: object_count, ocr_match"),
        ("zzz", [], "none is known"),
    ],
)
def test_close_match_hint(name, known, hint):
    assert close_match_hint(name, known) == hint
