"""Puts `tests/` on the path, so that the helpers shared by several test folders can be imported."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
