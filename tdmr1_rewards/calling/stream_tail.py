"""The last output of a process."""

from __future__ import annotations

import os
import threading
from typing import IO

from tdmr1_rewards.texts.redaction import redact

QUOTED_LINES = 3
"""Lines that a message quotes after a process has exited."""


class StreamTail:
    """Reads a stream in a thread and keeps its last 4096 bytes."""

    def __init__(self, stream: IO[bytes] | None) -> None:
        assert stream is not None
        self._kept = b""
        self._thread = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._thread.start()

    def quoted(self) -> str:
        """The last lines, as the end of a sentence; empty if there are none."""
        self._thread.join(1)
        lines = [line.strip() for line in self._kept.decode("utf-8", "replace").splitlines() if line.strip()]
        return f"; its last output: {redact(' / '.join(lines[-QUOTED_LINES:]))[-500:]}" if lines else ""

    def _read(self, stream: IO[bytes]) -> None:
        with stream:
            while chunk := os.read(stream.fileno(), 65536):
                self._kept = (self._kept + chunk)[-4096:]
