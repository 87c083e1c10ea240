"""The random configurations of the stress test."""

from __future__ import annotations

import random

import pytest
from stress.configurations import _settings, draw

from tdmr1_core.config import RunConfig

pytestmark = pytest.mark.unit


def test_every_setting_has_random_values():
    """A setting of a new type needs values in NAMED."""
    for number in range(len(list(_settings(RunConfig)))):
        assert draw(random.Random(number), number)["rewards"]
