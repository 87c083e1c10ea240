"""Output: data on stdout, messages on stderr; tables, JSON documents and number formats."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from tdmr1_core.errors import RunWarning
    from tdmr1_core.runs.evaluation.evaluate import Measure

PIPE_WIDTH = 160
"""Width of a table in columns, if stdout is not a terminal."""


def message(text: str) -> None:
    """Print a message on stderr."""
    print(text, file=sys.stderr, flush=True)


def warning(text: str) -> None:
    """Print a warning on stderr."""
    message(f"warning: {text}")


def print_warnings(warnings: Iterable[RunWarning], where: str = "") -> None:
    """Print warnings with their codes on stderr, each after `where`. A setting without effect is only a note."""
    for each in warnings:
        kind = "note" if each.code == "setting-ineffective" else "warning"
        message(f"{kind}: {where}{each} [{each.code}]")


def data(text: str) -> None:
    """Print a line of the result on stdout."""
    print(text, flush=True)


def emit_json(document: Any) -> None:
    """Print the result as one JSON document on stdout. NaN and infinity become null."""
    print(json.dumps(_plain(document), indent=2, ensure_ascii=False, allow_nan=False, default=str), flush=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str | None = None) -> None:
    """Print a table on stdout."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    if title:
        data(title)
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        shown.add_column(Text(column), overflow="fold")
    for row in rows:
        shown.add_row(*(Text(cell) for cell in row))
    _console().print(shown)


def fields(pairs: Sequence[tuple[str, str]]) -> None:
    """Print names and values on stdout, one pair per line."""
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        data(f"{name:<{width}}  {value}")


def _console() -> Console:
    from rich.console import Console

    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)


def number(value: float) -> str:
    """Three decimals; a dash for a value that is not finite."""
    return f"{value:.3f}" if math.isfinite(value) else "–"


def plus_minus(value: Measure) -> str:
    """Mean ± standard error."""
    return f"{number(value.mean)} ± {number(value.stderr)}"


def signed(value: Measure) -> str:
    """A difference with its sign ± its standard error."""
    return ("+" if value.mean >= 0 else "") + plus_minus(value)


def measure_document(value: Measure) -> dict[str, Any]:
    """A measure as JSON."""
    return {"mean": value.mean, "stderr": value.stderr, "n": value.n}
