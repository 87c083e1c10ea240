"""The type of a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MANY_UNSCORED = 0.1
"""From this fraction on, a warning reports prompts of a set, or images of an iteration, that have no score."""


@dataclass(frozen=True)
class Prompt:
    """A prompt text and its metadata, in the format of GenEval where it applies."""

    text: str
    metadata: Mapping[str, Any]
