"""docs/commands.md: every command with its arguments and options, read from typer."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import Any

import typer.main

from builder.cells import code, prose, table, value
from tdmr1_cli.app import build_app

HEAD = """# Commands

This page is generated from the command line itself: `tdmr1 COMMAND --help` prints the same. [Usage](usage.md)
explains what the commands are for, and [error codes](errors.md) lists the exit codes. With `--json`, commands print one
JSON document to stdout.
"""


def commands() -> dict[str, Any]:
    """The commands of click by their words, such as "rewards list", in the order of the help."""
    return dict(_walk(typer.main.get_command(build_app()), ()))


def commands_page() -> str:
    """The text of docs/commands.md."""
    parts = [HEAD]
    for words, command in commands().items():
        arguments = " ".join(_written(each) for each in command.params if each.param_type_name == "argument")
        usage = " ".join(part for part in ("tdmr1", words, arguments, "[OPTIONS]") if part)
        parts.append(f"## `tdmr1 {words}`\n\n```text\n{usage}\n```\n\n{_text(command.help)}\n")
        if rows := [_row(each) for each in command.params]:
            parts.append(table(["argument or option", "meaning", "default", "values"], rows) + "\n")
    return "\n".join(parts)


def _walk(command: Any, words: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """A command, or the commands of a group."""
    if not hasattr(command, "commands"):
        yield " ".join(words), command
        return
    for name, inner in command.commands.items():
        yield from _walk(inner, (*words, name))


def _text(help_text: str | None) -> str:
    """The description of a command, one line for each paragraph."""
    paragraphs = (help_text or "").replace("\b", "").split("\n\n")
    return "\n\n".join(prose(" ".join(paragraph.split())) for paragraph in paragraphs)


def _row(parameter: Any) -> list[str]:
    shown = code(_written(parameter))
    default = parameter.default
    is_plain = default is not None and not callable(default) and default not in ((), [], False)
    written = value(default.value if isinstance(default, Enum) else default) if is_plain else "–"
    required = "required" if parameter.required else written
    repeated = " May be repeated." if parameter.multiple and "repeated" not in (parameter.help or "") else ""
    return [shown, prose(" ".join((parameter.help or "").split())) + repeated, required, _values(parameter)]


def _written(parameter: Any) -> str:
    """A parameter as it is typed: `--images N`, `--open / --no-open`, `[CONFIG.yaml]`."""
    if parameter.param_type_name == "argument":
        name = parameter.metavar or parameter.name.upper()
        return name if parameter.required else f"[{name}]"
    names = " / ".join([*parameter.opts, *parameter.secondary_opts])
    return names if parameter.is_flag else f"{names} {parameter.metavar or parameter.name.upper()}"


def _values(parameter: Any) -> str:
    """The choices of an option or the bounds of its number."""
    kind = getattr(parameter.type_descriptor, "annotation", None)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return ", ".join(code(each.value) for each in kind)
    if parameter.min is None and parameter.max is None:
        return "–"
    low = "" if parameter.min is None else f"from {parameter.min:.12g}"
    high = "" if parameter.max is None else f"to {parameter.max:.12g}"
    return f"{low} {high}".strip()
