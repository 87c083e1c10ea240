"""The streams of the program: a write to stdout or stderr never fails, so that output never stops the work.

What cannot be written is dropped, and what cannot be encoded is escaped. `install` replaces `sys.stdout` and
`sys.stderr`, so that this also holds for libraries, rewards, warnings, logging and the flush at the exit of the
interpreter. The first loss of each stream is remembered: a run records it in its folder, and a command whose result
is lost fails (docs/faults.md has the rule).
"""

from __future__ import annotations

import errno
import io
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from tdmr1_rewards.texts.redaction import redact

STDERR = 2
RECORD = "output_lost.txt"
"""The file of a run folder that names lost output, one line per stream and session."""
CLOSED = (errno.EPIPE, errno.EBADF, errno.ECONNRESET)
"""Errors of a stream that its reader has closed."""
RETRY = 0.01
"""Seconds until a write to a full pipe is tried again, if the pipe does not block."""


class Loss:
    """The first failed write of a stream. `is_closed` is whether nobody reads the stream any more."""

    def __init__(self, descriptor: int, error: OSError) -> None:
        self.reason = error.strerror or str(error)
        self.errno = error.errno
        self.is_closed = error.errno in CLOSED or (error.errno == errno.EIO and _is_terminal(descriptor))


_losses: dict[str, Loss] = {}
"""By stream: stdout or stderr."""
_recorded: set[str] = set()
_record: Callable[[], None] | None = None
_kept_elsewhere = False
"""Whether the result of the command is also in files, so that its loss is no error."""


class _LossyFile(io.FileIO):
    """A descriptor to which every write succeeds. `stream` names it: stdout or stderr."""

    def __init__(self, descriptor: int, stream: str) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._stream = stream
        self.name = f"<{stream}>"

    def write(self, content: Any, /) -> int:
        """The number of bytes written or dropped."""
        try:
            while (written := super().write(content)) is None:  # a pipe that is full and does not block
                time.sleep(RETRY)
            return int(written)
        except OSError as error:
            _lose(self._stream, self.fileno(), error)
            return memoryview(content).nbytes


class Stream(io.TextIOWrapper):
    """A text stream to which every write succeeds, without secrets.

    It stays open: nobody can close the streams of the program.
    """

    def write(self, text: str, /) -> int:
        """Write a text, in which secrets are redacted. Returns the length of the text."""
        super().write(redact(text))
        return len(text)

    def close(self) -> None:
        """Only flush."""
        self.flush()


def lossy_stream(descriptor: int, name: str, like: TextIO | None = None) -> Stream:
    """A stream for a descriptor, with the encoding and the buffering of another. `name` is stdout or stderr."""
    encoding, at_once = "utf-8", True
    if isinstance(like, io.TextIOWrapper):
        encoding, at_once = like.encoding, like.line_buffering or like.write_through
    buffer = io.BufferedWriter(_LossyFile(descriptor, name))
    return Stream(buffer, encoding=encoding, errors="backslashreplace", line_buffering=at_once)


def install() -> None:
    """Replace `sys.stdout` and `sys.stderr`, and forget earlier losses.

    Only streams of the descriptors 1 and 2 are replaced. A closed descriptor becomes a null device, so that no file of
    the program gets its number. Any other stream, such as that of a test, only escapes what it cannot encode.
    """
    global _kept_elsewhere
    _losses.clear()
    _recorded.clear()
    _kept_elsewhere = False
    _open_closed_descriptors()
    for number, name in ((1, "stdout"), (STDERR, "stderr")):
        stream = getattr(sys, name)
        if isinstance(stream, Stream):
            continue
        if stream is None or descriptor_of(stream) == number:
            with suppress(OSError, ValueError):  # what it still holds cannot be written
                if stream is not None:
                    stream.flush()
            try:
                replacement = lossy_stream(number, name, stream)
            except OSError:  # the descriptor is that of a folder
                replacement = lossy_stream(os.open(os.devnull, os.O_WRONLY), name, stream)
            setattr(sys, name, replacement)
            setattr(sys, f"__{name}__", replacement)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def descriptor_of(stream: TextIO) -> int:
    """The descriptor of a stream; -1 if it has none."""
    try:
        return stream.fileno()
    except (AttributeError, OSError, ValueError):
        return -1


def interject(text: str) -> None:
    """Write to stderr with a system call: a stream that a signal has interrupted in a write would raise."""
    try:
        os.write(STDERR, text.encode())
    except OSError as error:
        _lose("stderr", STDERR, error)


def lost_result() -> Loss | None:
    """The loss of results on stdout that is an error; None if the reader has closed it, or if files have them too."""
    sys.stdout.flush()
    loss = _losses.get("stdout")
    return None if loss is None or loss.is_closed or _kept_elsewhere else loss


@contextmanager
def losses_recorded(folder: Path, is_ready: Callable[[], bool]) -> Iterator[None]:
    """Within the context, record lost output in a run folder, as soon as the folder is ready.

    The result of the command is in that folder too, so its loss on stdout is no error.
    """
    global _record, _kept_elsewhere

    def record() -> None:
        missing = [name for name in _losses if name not in _recorded]
        if not missing or not is_ready():
            return
        _recorded.update(missing)
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        with suppress(OSError), (folder / RECORD).open("a", encoding="utf-8") as file:
            file.writelines(f"{now} {name}: output was lost: {_losses[name].reason}\n" for name in missing)

    _record, _kept_elsewhere = record, True
    try:
        yield
    finally:
        record()
        _record = None


def _lose(stream: str, descriptor: int, error: OSError) -> None:
    if stream not in _losses:
        _losses[stream] = Loss(descriptor, error)
    if stream not in _recorded and _record is not None:
        _record()


def _open_closed_descriptors() -> None:
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError as error:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number, which is this one
            if number:
                _losses[name] = Loss(number, error)


def _is_terminal(descriptor: int) -> bool:
    """Whether it is a terminal or another device. A terminal that is gone does not report that it is one."""
    with suppress(OSError):
        return stat.S_ISCHR(os.fstat(descriptor).st_mode)
    return False
