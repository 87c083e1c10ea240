"""Prompts that a Python program gives as a list."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.errors import raises, warns

from tdmr1_core.prompts.files import read_prompt_file
from tdmr1_core.prompts.prompt import Prompt
from tdmr1_core.training.python_prompts import read_prompts

pytestmark = pytest.mark.unit

MIXED = ["one", {"prompt": "two “2”", "n": np.int64(3), "sizes": np.array([1.5]), "path": Path("a/b"), "none": None}]


def deep(levels: int) -> list:
    """A list in a list, and so on."""
    nested: list = []
    for _ in range(levels):
        nested = [nested]
    return nested


class Polars:
    """The part of a polars.DataFrame that is used. Its `to_dict` has no argument for the form."""

    columns = ("prompt", "count")

    def to_dict(self, *, as_series=True):
        raise AssertionError

    def to_dicts(self):
        return [{"prompt": "one", "count": 1}]


def test_the_file_of_a_list_has_the_same_prompts(tmp_path):
    file = tmp_path / "prompts.json"
    listed = read_prompts([*MIXED, Prompt("three", {"count": 3})], "prompts", file)
    file.write_bytes(listed.content)
    assert listed.prompts.name == str(file)
    assert list(listed.prompts.prompts) == read_prompt_file(file)
    assert listed.prompts.prompts[1].metadata["sizes"] == [1.5]
    assert listed.prompts.prompts[2] == Prompt("three", {"prompt": "three", "count": 3})


@pytest.mark.parametrize("name", [None, "count", Path("train.txt")])
def test_a_name_is_no_list(name, tmp_path):
    assert read_prompts(name, "prompts", tmp_path / "prompts.json") is None


@pytest.mark.parametrize(
    ("prompts", "code", "values"),
    [
        ([], "prompts-empty", {}),
        (["one", 2], "prompt-invalid", {"places": ["item 2"]}),
        ([{"promt": "one"}], "prompt-invalid", {"places": ["item 1"]}),
        ([{"prompt": "one", "score": float("nan")}], "prompt-invalid", {"places": ["item 1"]}),
        ([{"prompt": "one", "call": print}], "prompt-invalid", {"argument": "prompts"}),
        ([{"prompt": "one", "deep": deep(100_000)}], "prompt-invalid", {"argument": "prompts"}),
        ({"prompt": "one"}, "argument-invalid", {"type": "dict"}),
        (3, "argument-invalid", {"type": "int"}),
    ],
)
def test_wrong_prompts_are_named(prompts, code, values, tmp_path):
    with raises(code, **values):
        read_prompts(prompts, "prompts", tmp_path / "prompts.json")


def test_prompts_that_occur_twice_are_a_warning(tmp_path):
    with warns("prompts-doubtful", places=["item 1", "item 2"]):
        read_prompts(["one", "one"], "prompts", tmp_path / "prompts.json")


def test_a_data_frame_has_a_prompt_in_each_row(tmp_path):
    frame = pytest.importorskip("pandas").DataFrame({"prompt": ["one", "two"], "count": [1, 2]})
    listed = read_prompts(frame, "prompts", tmp_path / "prompts.json")
    assert [(prompt.text, prompt.metadata["count"]) for prompt in listed.prompts.prompts] == [("one", 1), ("two", 2)]


def test_a_data_frame_of_polars_has_a_prompt_in_each_row(tmp_path):
    listed = read_prompts(Polars(), "prompts", tmp_path / "prompts.json")
    assert listed.prompts.prompts == (Prompt("one", {"prompt": "one", "count": 1}),)
