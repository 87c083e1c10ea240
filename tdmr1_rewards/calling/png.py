"""Reads the size of PNG files without decompressing anything, and removes chunks that hold no pixels."""

from __future__ import annotations

import struct

SIGNATURE = b"\x89PNG\r\n\x1a\n"
START = len(SIGNATURE) + 25
"""Bytes of the signature and the header chunk."""
KEPT = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
"""Chunks that the pixels depend on. Others may have compressed texts or color profiles of any size."""


def png_size(start: bytes) -> tuple[int, int]:
    """Width and height from the first START bytes of a PNG file. Raises ValueError if they are not such a file."""
    if len(start) < START or not start.startswith(SIGNATURE + b"\0\0\0\rIHDR"):
        raise ValueError("not a PNG file")
    width, height = struct.unpack_from(">II", start, len(SIGNATURE) + 8)
    if not width or not height:
        raise ValueError("a PNG file without pixels")
    return width, height


def pixel_chunks(file: bytes) -> bytes:
    """A PNG file with one header chunk and without chunks that its pixels do not depend on."""
    parts, at = [file[:START]], START
    while at + 8 <= len(file):
        length, kind = struct.unpack_from(">I4s", file, at)
        if kind in KEPT[1:]:
            parts.append(file[at : at + length + 12])
        at += length + 12
    return b"".join(parts)
