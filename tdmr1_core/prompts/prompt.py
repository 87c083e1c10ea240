"""The type of a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MANY_UNSCORED = 0.1
"""From this fraction on, a warning reports prompts of a set, or images of an iteration, that have no score."""


@dataclass(frozen=True)
class Prompt:
    """A prompt text and its metadata, in the format of GenEval where it applies.

    A prompt from a file also has this file and its place there, such as "line 3".
    """

    text: str
    metadata: Mapping[str, Any]
    file: Path | None = field(default=None, compare=False)
    place: str = field(default="", compare=False)
