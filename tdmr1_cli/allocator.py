"""How the process allocates memory. On a CPU, every pass of a network allocates and frees the same blocks."""

from __future__ import annotations

import ctypes
import os
import sys

KEPT_BYTES = 2**30
"""The most freed bytes at the end of the heap that the C library keeps. By default it keeps 128 kB to 64 MB."""
LARGE_BLOCK = 32 * 2**20
"""Larger blocks go back to the system when they are freed. By default the limit adapts, up to this one."""
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt in glibc's malloc.h."""
USER_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
"""Environment variables with which a user sets the allocator of glibc."""


def keep_freed_memory() -> None:
    """Let the process use freed memory again instead of returning it, and let torch ask for large pages.

    Otherwise the system clears the same pages at every allocation. Call this before torch is imported. Settings in the
    user's environment have priority. Without glibc, nothing changes.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if sys.platform != "linux" or any(name in os.environ for name in USER_SETTINGS):
        return
    adjust = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if adjust is not None:
        adjust(MMAP_THRESHOLD, LARGE_BLOCK)
        adjust(TRIM_THRESHOLD, KEPT_BYTES)
