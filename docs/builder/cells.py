"""Texts as Markdown code, also inside table cells."""

from __future__ import annotations

from typing import Any


def code(text: object) -> str:
    """A text as inline code in a table cell."""
    shown = str(text)
    quotes, space = ("``", " ") if "`" in shown else ("`", "")
    return f"{quotes}{space}{shown}{space}{quotes}".replace("|", "\\|")


def prose(text: str) -> str:
    """A sentence in a table cell. Brackets and stars outside of code are escaped, so that they are no markup."""
    parts = text.replace("|", "\\|").split("`")
    for place in range(0, len(parts), 2):
        parts[place] = parts[place].replace("<", "&lt;").replace(">", "&gt;")
        for character in "[]*_":
            parts[place] = parts[place].replace(character, f"\\{character}")
    return "`".join(parts)


def value(item: Any) -> str:
    """A value of a setting as inline code, written as in YAML."""
    if item is None:
        return code("null")
    if isinstance(item, bool):
        return code(str(item).lower())
    if isinstance(item, float):
        return code(f"{item:.12g}")
    if isinstance(item, list | tuple | dict) and not item:
        return code("{}" if isinstance(item, dict) else "[]")
    if isinstance(item, tuple):
        return code(f"[{', '.join(map(str, item))}]")
    if isinstance(item, str) and "\n" in item:
        return f"a text of {item.count(chr(10)) + 1} lines"
    return code(item)


def table(columns: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(cells)} |" for cells in (columns, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(columns), *lines[1:]])
