"""Programs that tests run and that pip does not install. Without one, the tests fail with a message."""

from __future__ import annotations

import shutil

import pytest

PACKAGES = {"node": "nodejs", "curl": "curl", "bash": "bash"}
"""The Debian package of each program."""


def find_program(name: str) -> str:
    """The path of a program; fails the test if it is not installed."""
    path = shutil.which(name)
    if path is None:
        pytest.fail(f"{name} is not installed: `apt-get install {PACKAGES[name]}`", pytrace=False)
    return path
