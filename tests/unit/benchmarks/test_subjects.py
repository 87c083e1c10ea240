"""Every subject of the benchmark can be measured: what its tables name is measured, and right pictures are right."""

from __future__ import annotations

import numpy as np
import pytest
import subjects

from tdmr1_core.models.registry import ModelRegistry
from tdmr1_core.runs.evaluation.evaluate import EvaluationImages

pytestmark = pytest.mark.unit

FEW = 8


def measured(sheet) -> dict[str, list[float]]:
    """What is measured on the first few of the world's own right pictures."""
    images, prompts = sheet.itself(np.random.default_rng(0), 1)
    return sheet.measure(
        EvaluationImages(images[:FEW], tuple(prompts[:FEW]), tuple(index // 2 for index in range(FEW)))
    )


@pytest.mark.parametrize("name", subjects.SUBJECTS)
def test_what_the_tables_name_is_measured(name):
    subject = subjects.SUBJECTS[name]
    first, *others = [measured(sheet) for sheet in subject.sheets]
    for headline in subject.headlines:
        assert np.mean(first[headline]) >= 0.9, headline
    everything = set(first).union(*others)
    assert {*subject.headlines, *subject.beside} <= everything
    assert not set(subject.headlines) & set(subject.beside)
    assert ModelRegistry().get(subject.model).domain == subject.sheets[0].domain


@pytest.mark.parametrize(
    ("name", "pictures", "share"), [("count", 1152, 1 / 4), ("composition", 864, 2 / 9), ("words", 1536, 1 / 4)]
)
def test_some_of_the_captions_were_never_trained_on(name, pictures, share):
    sheet = subjects.SUBJECTS[name].sheets[0]
    assert len(sheet.clusters) == len(sheet.never_trained) == pictures
    assert sheet.never_trained.mean() == pytest.approx(share)
    assert len(np.unique(sheet.clusters[sheet.never_trained])) == pytest.approx(len(np.unique(sheet.clusters)) * share)
