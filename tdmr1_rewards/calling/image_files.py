"""Reads image files of users, which may be broken in any way. Every reader of such files uses this function."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from tdmr1_rewards.errors import Tdmr1Error

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "BMP", "GIF", "TIFF", "PPM")
"""Formats that are read, if this Pillow can. Others are no images of pixels, and for some it starts other programs."""


def read_image(path: str | os.PathLike[str]) -> Image:
    """An image file as RGB, rotated as its EXIF data says. Raises Tdmr1Error if it cannot be read."""
    from PIL import Image, ImageOps

    values = {"path": str(path)}
    if not Path(path).is_file():
        found = "is not a file" if Path(path).exists() else "does not exist"
        code = "file-unreadable" if Path(path).exists() else "file-missing"
        raise Tdmr1Error(f"cannot read the image {path}: it {found}", "check the path", code=code, values=values)
    Image.init()
    try:
        with Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN]) as image:
            image.load()
            try:
                return ImageOps.exif_transpose(image).convert("RGB")
            except Exception:  # broken EXIF data; the pixels are intact
                return image.convert("RGB")
    except Exception as error:  # Pillow raises many types of exceptions for a broken file
        raise Tdmr1Error(
            f"cannot read {path} as an image", "use a PNG, JPEG or WebP file", code="file-unreadable", values=values
        ) from error
