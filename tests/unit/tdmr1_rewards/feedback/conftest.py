"""Shared by the tests of the feedback store, its database and its server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tdmr1_rewards.feedback.store import FeedbackStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FeedbackStore]:
    """An empty store in a temporary folder."""
    made = FeedbackStore(tmp_path / "feedback")
    yield made
    made.close()
