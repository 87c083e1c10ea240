"""The log lines of both servers: one line per event, without control characters, and not more than LINES a minute."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tdmr1_rewards.errors import describe_error, one_line, printable, shorten

LINES, PERIOD = 60, 60.0
"""Largest number of lines in PERIOD seconds; further lines are counted only. A flood of invalid requests must neither
fill the disk nor push all other lines out of a rotated file."""
LONGEST = 500
"""Characters of a line."""
SOURCES = ("uvicorn.error", "asyncio", "tdmr1_rewards.serving", "tdmr1_rewards.feedback")
"""Loggers whose records are lines of the log."""


class OneLine(logging.Formatter):
    """Time and message; the exception of a record is its type, message and place, instead of a traceback.

    `omitted` is the number of earlier lines that were not logged; the next line has it.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(message)s")
        self.omitted = 0

    def formatException(self, ei: Any) -> str:
        """The exception and the line that raised it."""
        _, error, trace = ei
        while trace.tb_next is not None:
            trace = trace.tb_next
        return f"{describe_error(error)} ({trace.tb_frame.f_code.co_filename}, line {trace.tb_lineno})"

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        note = f" ({self.omitted} lines before this were not logged)" if self.omitted else ""
        self.omitted = 0
        return escaped(super().format(record)) + note


class RateLimit(logging.Filter):
    """Drops records above the limit, and gives their number to the formatter."""

    def __init__(self, formatter: OneLine) -> None:
        super().__init__()
        self._formatter = formatter
        self._began, self._logged, self._dropped = time.monotonic(), 0, 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to log the record."""
        now = time.monotonic()
        if now - self._began >= PERIOD:
            self._began, self._logged = now, 0
        if self._logged >= LINES:
            self._dropped += 1
            return False
        self._logged += 1
        self._formatter.omitted += self._dropped
        self._dropped = 0
        return True


def escaped(text: str) -> str:
    """The text as one line of at most LONGEST characters, with escapes for characters that cannot be printed."""
    return printable(shorten(one_line(text), LONGEST))


@contextmanager
def logged(handler: logging.Handler) -> Iterator[None]:
    """Send the log of the servers to `handler` during the block."""
    formatter = OneLine()
    handler.setFormatter(formatter)
    handler.addFilter(RateLimit(formatter))
    sources = [logging.getLogger(name) for name in SOURCES]
    for source in sources:
        source.addHandler(handler)
    try:
        yield
    finally:
        for source in sources:
            source.removeHandler(handler)
        handler.close()
