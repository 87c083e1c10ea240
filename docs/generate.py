"""Rewrites the generated files of this folder: `python docs/generate.py`. A test compares them."""

from __future__ import annotations

from pathlib import Path

from builder.commands_page import commands_page
from builder.curves import figure, measured
from builder.settings_page import settings_page

FOLDER = Path(__file__).parent


def generated_files() -> dict[str, str]:
    """The text of each generated file by its path. docs/errors.md is written by tests/unit/docs/test_errors.py."""
    pages = {"commands.md": commands_page(), "settings.md": settings_page()}
    return pages | {f"curves/{name}.svg": figure(curves) for name, curves in measured().items()}


if __name__ == "__main__":
    for name, text in generated_files().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
