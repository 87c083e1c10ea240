"""Folders of the source tree."""

from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
