"""Every row of docs/faults.md names tests that exist."""

from __future__ import annotations

import re

import pytest
from support.paths import ROOT, TESTS

pytestmark = pytest.mark.unit
PAGE = (ROOT / "docs" / "faults.md").read_text()
TABLE = PAGE.partition("\n## Faults\n")[2].partition("\n## ")[0]
ROWS = [line for line in TABLE.splitlines() if line.startswith("| ")][1:]


def test_every_fault_has_a_test():
    assert len(ROWS) >= 18
    for row in ROWS:
        named = re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", row[:-2].rpartition("| ")[2])
        assert named, row
        for file, test in named:
            content = (TESTS / file).read_text()
            assert re.search(rf"^def {test or 'test_[a-z0-9_]+'}\(", content, re.MULTILINE), (file, test)
