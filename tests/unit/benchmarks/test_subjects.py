"""Every task of the learning benchmark: all metrics of its tables are measured, and correct images score high."""

from __future__ import annotations

import numpy as np
import pytest
import subjects

from tdmr1_core.models.catalog import BUILTIN_MODELS
from tdmr1_core.models.registry import ModelRegistry
from tdmr1_core.runs.evaluation.evaluate import EvaluationImages

pytestmark = pytest.mark.unit

FEW = 8


def measured(sheet) -> dict[str, list[float]]:
    """The metrics of the first few correct images of the world."""
    images, prompts = sheet.reference(np.random.default_rng(0), 1)
    return sheet.measure(
        EvaluationImages(images[:FEW], tuple(prompts[:FEW]), tuple(index // 2 for index in range(FEW)))
    )


@pytest.mark.parametrize("name", subjects.SUBJECTS)
def test_all_metrics_of_the_tables_are_measured(name):
    subject = subjects.SUBJECTS[name]
    first, *others = [measured(sheet) for sheet in subject.sheets]
    for headline in subject.headlines:
        assert np.mean(first[headline]) >= 0.9, headline
    available = set(first).union(*others)
    assert {*subject.headlines, *subject.unrewarded} <= available
    assert not set(subject.headlines) & set(subject.unrewarded)
    assert ModelRegistry(BUILTIN_MODELS).get(subject.model).domain == subject.sheets[0].domain


@pytest.mark.parametrize(
    ("name", "images", "fraction"), [("count", 1152, 1 / 4), ("composition", 864, 2 / 9), ("words", 1536, 1 / 4)]
)
def test_a_fraction_of_the_captions_is_held_out(name, images, fraction):
    sheet = subjects.SUBJECTS[name].sheets[0]
    assert len(sheet.clusters) == len(sheet.held_out) == images
    assert sheet.held_out.mean() == pytest.approx(fraction)
    assert len(np.unique(sheet.clusters[sheet.held_out])) == pytest.approx(len(np.unique(sheet.clusters)) * fraction)
