"""The table of docs/differences.md about the comparisons of `ocr_match` is what the benchmark prints."""

from __future__ import annotations

import ocr_comparison
import pytest
from support.paths import ROOT

pytestmark = pytest.mark.unit


def test_the_document_has_the_table_of_the_benchmark():
    listed = [line.strip() for line in (ROOT / "docs" / "differences.md").read_text().splitlines()]
    rows = list(ocr_comparison.table())
    assert listed[listed.index(rows[0]) :][: len(rows)] == rows


def test_perfect_readings_score_1_and_the_published_comparison_agrees_on_english():
    assert {reading.score("unicode") for reading in ocr_comparison.READINGS} == {1.0}
    published = {reading.what: reading.score("published") for reading in ocr_comparison.READINGS}
    assert published.pop("English") == 1.0
    assert max(published.values()) < 1
