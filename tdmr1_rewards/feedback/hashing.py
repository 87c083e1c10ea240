"""The name of a picture: a hash of its pixels, so that a file of another format or another compression keeps it."""

from __future__ import annotations

import hashlib
from typing import Any

from tdmr1_rewards.errors import Tdmr1Error


def image_hash(image: Any) -> str:
    """SHA-256, as 64 hex digits, over "{width}x{height}:" and the RGB bytes, row by row.

    `image` is a PIL image or a uint8 array (H, W, 3). Raises Tdmr1Error for another array.
    """
    if hasattr(image, "convert"):
        width, height = image.size
        pixels = image.convert("RGB").tobytes()
    else:
        shape, kind = tuple(getattr(image, "shape", ())), str(getattr(image, "dtype", type(image).__name__))
        if len(shape) != 3 or shape[2] != 3 or kind != "uint8":
            raise Tdmr1Error(
                f"a picture is {kind} of shape {shape}, not uint8 of (height, width, 3)",
                "give PIL images or uint8 RGB arrays",
            )
        height, width, _ = shape
        pixels = image.tobytes()
    return hashlib.sha256(f"{width}x{height}:".encode() + pixels).hexdigest()
