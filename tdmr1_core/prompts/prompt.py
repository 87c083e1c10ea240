"""What every prompt set is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Prompt:
    """A text and what is known of it (GenEval's layout where it fits)."""

    text: str
    metadata: Mapping[str, Any]
