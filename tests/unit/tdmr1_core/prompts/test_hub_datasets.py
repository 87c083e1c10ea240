"""The names of datasets of the hub, without the package `datasets`."""

from __future__ import annotations

import sys

import pytest
from support.errors import raises

from tdmr1_core.prompts.hub_datasets import DatasetSource
from tdmr1_core.prompts.sets import companion_file, load_prompt_set, load_prompts, short_names

pytestmark = pytest.mark.unit

COMMIT = "a" * 40


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("hf:o/d:text", ("o/d", "text", None, None, None)),
        ("hf:o/d:text@test", ("o/d", "text", None, None, "test")),
        ("hf:o.p/d-1_2:a column@train[:10%]", ("o.p/d-1_2", "a column", None, None, "train[:10%]")),
        ("hf:o/d/small:text@train+test", ("o/d", "text", "small", None, "train+test")),
        (f"hf:o/d@{COMMIT}:text", ("o/d", "text", None, COMMIT, None)),
        ("hf:o/d/small@v1.0:text@test", ("o/d", "text", "small", "v1.0", "test")),
    ],
)
def test_the_parts_of_a_source(source, parts):
    found = DatasetSource.parse(source)
    assert (found.name, found.column, found.config, found.revision, found.split) == parts


@pytest.mark.parametrize(
    "source", ["hf:", "hf:o/d", "hf:d:text", "hf:o/d:", "hf:o/d:text@", "hf:o/d@:text", "hf:o/d:a@b c"]
)
def test_other_forms_are_refused(source):
    with raises("prompts-unknown", name=source):
        DatasetSource.parse(source)


def test_the_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    for load in (load_prompts, load_prompt_set):
        with raises("dependency-missing", package="datasets"):
            load("hf:o/d:text", "tiny")


def test_a_dataset_is_no_path():
    assert companion_file("hf:owner/train:text") is None
    assert short_names(["hf:owner/data:text", "/a/train.txt"]) == {
        "hf:owner/data:text": "hf:owner/data:text",
        "/a/train.txt": "train.txt",
    }
