"""The type of a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Prompt:
    """A prompt text and its metadata, in the format of GenEval where it applies."""

    text: str
    metadata: Mapping[str, Any]
