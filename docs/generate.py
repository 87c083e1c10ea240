"""Rewrites the generated pages of this folder: `python docs/generate.py`. A test compares them."""

from __future__ import annotations

from pathlib import Path

from builder.commands_page import commands_page
from builder.settings_page import settings_page

PAGES = {"commands.md": commands_page, "settings.md": settings_page}
"""The function that writes each generated page. docs/errors.md is written by tests/unit/docs/test_errors.py."""

if __name__ == "__main__":
    for name, page in PAGES.items():
        (Path(__file__).parent / name).write_text(page(), encoding="utf-8")
