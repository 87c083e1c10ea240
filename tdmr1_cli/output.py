"""Output: results on stdout, messages on stderr; tables, JSON documents and number formats.

While a command runs, only its results reach stdout. What rewards and libraries print, also from C, goes to stderr.
Everything for a terminal passes `printable`, which escapes control characters; `streams` makes writes that never fail.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, TextIO

from tdmr1_cli.streams import descriptor_of, lossy_stream
from tdmr1_rewards.errors import escape_in_json, printable
from tdmr1_rewards.texts.documents import parse_json
from tdmr1_rewards.texts.redaction import redact

if TYPE_CHECKING:
    from rich.console import Console

    from tdmr1_core.errors import RunWarning
    from tdmr1_core.runs.evaluation.evaluate import Measure

PIPE_WIDTH = 160
"""Width of a table in columns, if stdout is not a terminal."""


_results: TextIO | None = None
"""The stream of results while a command runs; None otherwise."""
_program_stdout: TextIO | None = None
"""The former sys.stdout while a command runs; None otherwise."""


def results() -> TextIO:
    """The stream of results: stdout, also while a command runs."""
    return _results or sys.stdout


@contextlib.contextmanager
def only_results_on_stdout() -> Iterator[None]:
    """Within the context, `results` is the former stdout, and everything else that writes to stdout goes to stderr."""
    global _results, _program_stdout
    former, program_stdout = (_results, _program_stdout), sys.stdout
    if program_stdout is None:  # it was closed before the program started
        yield
        return
    program_stdout.flush()
    with _descriptor_moved() as stream:
        _results, _program_stdout = stream or program_stdout, program_stdout
        try:
            with contextlib.redirect_stdout(sys.stderr):
                yield
        finally:
            _results, _program_stdout = former


@contextlib.contextmanager
def _descriptor_moved() -> Iterator[TextIO | None]:
    """Point file descriptor 1 at stderr; yields a stream for its former target. None if sys.stdout is no descriptor."""
    if descriptor_of(sys.stdout) != 1:
        yield None
        return
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        # Every result is flushed when it is written, so nothing is left to flush at the end.
        yield lossy_stream(kept, "stdout", sys.stdout)
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def with_own_stdout(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command, run within `only_results_on_stdout`."""

    @wraps(command)
    def run(*arguments: Any, **options: Any) -> Any:
        with only_results_on_stdout():
            return command(*arguments, **options)

    return run


@contextlib.contextmanager
def stdout_of_the_program() -> Iterator[None]:
    """Within the context, stdout is that of the program again, for processes that are started or forked there."""
    if _results is None or _program_stdout is None:
        yield
        return
    with contextlib.ExitStack() as stack:
        if _results is not _program_stdout:  # file descriptor 1 points at stderr
            moved = os.dup(1)
            os.dup2(_results.fileno(), 1)
            stack.callback(os.close, moved)
            stack.callback(os.dup2, moved, 1)
        stack.enter_context(contextlib.redirect_stdout(_program_stdout))
        yield


def message(*lines: str) -> None:
    """Print a message on stderr, one line or more."""
    print(*map(printable, lines), sep="\n", file=sys.stderr, flush=True)


def warning(text: str) -> None:
    """Print a warning on stderr."""
    message(f"warning: {text}")


def print_warnings(warnings: Iterable[RunWarning], where: str = "") -> None:
    """Print warnings with their codes on stderr, each after `where`. A setting without effect is only a note."""
    for each in warnings:
        kind = "note" if each.code == "setting-ineffective" else "warning"
        message(f"{kind}: {where}{each} [{each.code}]")


def data(*lines: str) -> None:
    """Print lines of the result on stdout."""
    print(*map(printable, lines), sep="\n", file=results(), flush=True)


def emit_json(document: Any) -> None:
    """Print the result as one JSON document on stdout. NaN and infinity become null."""
    stream = results()
    text = escape_in_json(json.dumps(_plain(document), indent=2, ensure_ascii=False, allow_nan=False, default=str))
    try:
        text.encode(stream.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(parse_json(text, None), indent=2)
    print(text, flush=True, file=stream)


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return redact(value)
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
        shown.add_column(Text(printable(column)), overflow="fold")
    for row in rows:
        shown.add_row(*(Text(printable(cell)) for cell in row))
    console = _console()
    console.print(shown)
    console.file.flush()


def fields(pairs: Sequence[tuple[str, str]]) -> None:
    """Print names and values on stdout, one pair per line."""
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        data(f"{name:<{width}}  {value}")


def _console() -> Console:
    from rich.console import Console

    return Console(file=results(), width=None if results().isatty() else PIPE_WIDTH, highlight=False)


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
