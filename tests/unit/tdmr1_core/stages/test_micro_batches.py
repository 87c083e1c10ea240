"""Micro-batches are halved when the device runs out of memory, and the result stays the same."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support.errors import raises
from support.product import make_engine
from support.role_updates import SECTIONS, largest_difference, updated
from torch import Tensor

from tdmr1_core.errors import RunWarning
from tdmr1_core.models.sd3 import SD3Backbone
from tdmr1_core.stages.micro_batches import MicroBatches
from tdmr1_rewards.api import RewardBatch, RewardResult

pytestmark = pytest.mark.unit


def run_out_of_memory_beyond(rows: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Make the backbone run out of memory with more rows. Returns the list of requested batch sizes."""
    sizes: list[int] = []
    velocity = SD3Backbone.velocity

    def limited(self: SD3Backbone, latents: Tensor, *arguments: Any, **named: Any) -> Tensor:
        sizes.append(len(latents))
        if len(latents) > rows:
            raise torch.OutOfMemoryError("injected")
        return velocity(self, latents, *arguments, **named)

    monkeypatch.setattr(SD3Backbone, "velocity", limited)
    return sizes


@pytest.mark.filterwarnings("ignore::tdmr1_core.errors.RunWarning")
def test_micro_batches_are_halved_until_they_fit_without_a_change_of_the_result(monkeypatch):
    expected = updated(make_engine(SECTIONS))
    sizes = run_out_of_memory_beyond(5, monkeypatch)
    assert largest_difference(updated(make_engine(SECTIONS)), expected) <= 1e-12
    assert max(sizes) > 5 >= sizes[-1]
    assert sum(rows > 5 for rows in sizes) <= 6  # each stage remembers the size that fits


def run_out_of_memory_once(owner: Any, name: str, at: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Make the at-th call run out of memory. Returns an iterator over the numbers of further calls."""
    real, calls = getattr(owner, name), itertools.count(1)

    def sometimes(*given: Any, **named: Any) -> Any:
        if next(calls) == at:
            raise torch.OutOfMemoryError("injected")
        return real(*given, **named)

    monkeypatch.setattr(owner, name, sometimes)
    return calls


def iterated(micro_batch: int | str = "auto") -> dict[str, dict[str, Tensor]]:
    """All weights after one iteration with a reward for bright images."""

    def bright(batch: RewardBatch) -> RewardResult:
        return RewardResult([float(image.mean()) for image in batch.images])

    engine = make_engine(SECTIONS | {"batch": {**SECTIONS["batch"], "micro_batch": micro_batch}}, reward=bright)
    engine.iteration()
    engine.close()
    return {role: engine.roles.weights(role) for role in engine.roles.names}


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, dict[str, Tensor]]:
    return iterated()


@pytest.mark.parametrize(
    ("owner", "name", "at"),
    [
        (SD3Backbone, "velocity", 2),  # in the rollout
        (SD3Backbone, "decode", 1),
        *((SD3Backbone, "velocity", at) for at in (5, 7, 9, 13)),  # in each of the updates
        *((torch.autograd, "grad", at) for at in (1, 2, 3)),  # in their backward passes
    ],
)
def test_running_out_of_memory_once_changes_no_weight(undisturbed, owner, name, at, monkeypatch):
    calls = run_out_of_memory_once(owner, name, at, monkeypatch)
    with pytest.warns(RunWarning) as caught:
        assert largest_difference(iterated(), undisturbed) <= 1e-9
    (warning,) = [entry.message for entry in caught if isinstance(entry.message, RunWarning)]
    assert warning.code == "micro-batch-halved"
    assert warning.values == {"size": 6, "next_size": 3}
    assert next(calls) > at + 1, "the action must be repeated"


@pytest.mark.filterwarnings("ignore::tdmr1_core.errors.RunWarning")
def test_a_configured_micro_batch_is_halved_too(undisturbed, monkeypatch):
    calls = run_out_of_memory_once(torch.autograd, "grad", 2, monkeypatch)
    assert largest_difference(iterated(micro_batch=2), undisturbed) <= 1e-9
    assert next(calls) > 3


def test_a_micro_batch_of_all_images_is_never_halved(monkeypatch):
    run_out_of_memory_beyond(5, monkeypatch)
    with pytest.raises(torch.OutOfMemoryError):
        updated(make_engine(SECTIONS | {"batch": {**SECTIONS["batch"], "micro_batch": None}}))


def test_a_single_image_that_does_not_fit_stops_the_run(monkeypatch):
    run_out_of_memory_beyond(0, monkeypatch)
    with raises("out-of-memory", micro_batch=1):
        updated(make_engine(SECTIONS))


@pytest.mark.parametrize(
    ("size", "images", "multiple", "expected"),
    [
        (2, 5, 1, [[0, 1], [2, 3], [4]]),
        (None, 3, 1, [[0, 1, 2]]),
        (9, 3, 1, [[0, 1, 2]]),
        (5, 8, 2, [[0, 1, 2, 3], [4, 5, 6, 7]]),
        (2, 6, 3, [[0, 1], [2, 3], [4, 5]]),
    ],
)
def test_rows_of_micro_batches(size, images, multiple, expected):
    seen: list[list[int]] = []
    MicroBatches(size).each(images, lambda rows: seen.append(rows.tolist()), multiple)
    assert seen == expected
