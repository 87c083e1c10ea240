"""The named blocks of docs/reward_protocol.md."""

from __future__ import annotations

import json
import re
from typing import Any

from support.paths import ROOT

PAGE = (ROOT / "docs" / "reward_protocol.md").read_text()


def message(name: str) -> dict[str, Any]:
    """The JSON block with this name."""
    return json.loads(_block("json", name))


def lines(name: str) -> list[str]:
    """The lines of the shell block with this name."""
    return _block("sh", name).splitlines()


def _block(language: str, name: str) -> str:
    (text,) = re.findall(rf"```{language} {name}\n(.*?)```", PAGE, re.DOTALL)
    return text
