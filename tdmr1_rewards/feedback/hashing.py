"""Names images by a hash of their pixels, which does not depend on file format or compression."""

from __future__ import annotations

import hashlib
from typing import Any

from tdmr1_rewards.errors import Tdmr1Error


def image_hash(image: Any) -> str:
    """SHA-256, as 64 hex digits, of "{width}x{height}:" followed by the RGB bytes, row by row.

    `image` is a PIL image or a uint8 array (H, W, 3). Raises Tdmr1Error for any other type or shape.
    """
    if hasattr(image, "convert"):
        width, height = image.size
        pixels = image.convert("RGB").tobytes()
    else:
        shape, kind = tuple(getattr(image, "shape", ())), str(getattr(image, "dtype", type(image).__name__))
        if len(shape) != 3 or shape[2] != 3 or kind != "uint8":
            raise Tdmr1Error(
                f"an image must be uint8 of shape (height, width, 3), not {kind} of shape {shape}",
                "use PIL images or uint8 RGB arrays",
                code="feedback-item",
                values={"dtype": kind, "shape": [int(size) for size in shape]},
            )
        height, width, _ = shape
        pixels = image.tobytes()
    return hashlib.sha256(f"{width}x{height}:".encode() + pixels).hexdigest()
