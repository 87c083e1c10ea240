"""Reading requests from metadata in GenEval's layout."""

from __future__ import annotations

import pytest
from support.errors import raises

from tdmr1_rewards.builtin.geneval_request import Item, Request, read_request

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ({"include": [{"count": 1}]}, "'class' is missing"),
        ({"include": [{"class": "dog", "count": 0}]}, "'count' of 'dog' is 0"),
        ({"include": [{"class": "dog", "count": True}]}, "'count' of 'dog' is True"),
        ({"include": [{"class": "dog", "color": "blu"}]}, "did you mean 'blue'"),
        (
            {"include": [{"class": "dog", "position": ["left of", 0]}]},
            "entry 0: 'position' refers to entry 0, expected the index of another of the 1",
        ),
        (
            {"include": [{"class": "dog"}, {"class": "cat", "position": ["beside", 0]}]},
            "entry 1: 'position' is 'beside', expected one of left of",
        ),
        (
            {"include": [{"class": "dog"}, {"class": "cat", "position": ["above", 2]}]},
            "entry 1: 'position' refers to entry 2, expected the index of another of the 2",
        ),
        ({"include": ["dog"]}, "'str' object has no attribute"),
    ],
)
def test_metadata_that_do_not_follow_the_layout_are_an_error_that_names_the_prompt(entries, problem):
    with raises("reward-metadata", prompt="some dogs") as caught:
        read_request(entries, "some dogs")
    assert problem in caught.value.values["problem"]


def test_a_request_by_hand():
    metadata = {
        "tag": "position",
        "include": [{"class": "dog"}, {"class": "cat", "count": 2, "color": "red", "position": ["above", 0]}],
        "exclude": [{"class": "bird", "count": 3}, {"class": "bird", "count": 2}],
    }
    items = Item("dog", 1), Item("cat", 2, "red", ("above", 0))
    assert read_request(metadata, "") == Request("position", items, {"bird": 2})
    assert read_request({"exclude": [{"class": "bird"}]}, "") == Request("unknown", (), {"bird": 1})
    assert read_request({"include": [], "exclude": None}, "") is None


def test_values_of_none_are_absent():
    entry = {"class": "dog", "count": 1, "color": None, "position": None}
    assert read_request({"include": [entry], "exclude": None}, "") == Request("unknown", (Item("dog", 1),), {})


def test_a_contradictory_request_is_read():
    """As in the official script, where no image meets it."""
    metadata = {"include": [{"class": "dog", "count": 2}], "exclude": [{"class": "dog", "count": 2}]}
    assert read_request(metadata, "") == Request("unknown", (Item("dog", 2),), {"dog": 2})
