"""The benchmark of full-size architectures runs at a tiny size."""

import json
import sys

import full_size
import pytest
from support.errors import raises

pytestmark = pytest.mark.integration


def test_every_stage_is_measured(monkeypatch, capsys):
    size = ["--architecture", "tiny-tdm", "--size", "24", "--group-size", "2", "--precision", "fp32", "--checkpointing"]
    monkeypatch.setattr(sys, "argv", ["full_size.py", *size])
    full_size.main()
    document = json.loads(capsys.readouterr().out)
    assert set(document["stages"]) == {"rollout", "fake", "surrogate", "generator"}
    assert all(stage["images_per_second"] > 0 for stage in document["stages"].values())
    assert document["estimated_activations"] > 0
    assert document["sustained_tflops"] > 0
    assert document["measured_growth"] is None, "the peak memory of a stage cannot be measured on a CPU"


def test_a_size_that_the_model_does_not_support_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["full_size.py", "--size", "516"])
    with raises("setting-invalid", height=516, multiple=16):
        full_size.main()
