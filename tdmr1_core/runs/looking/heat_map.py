"""Draws where a direction points in an image, and embeds images in HTML."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

LARGEST_SIDE = 256
"""Larger images are reduced to this height and width for a page, in pixels."""
SMALL_SIDE = 96
"""Images below this width are stored without loss, and shown with visible pixels."""
DIMMED = 0.45
"""The part of an image's brightness that remains where the direction is 0."""
COLD, HOT = (200.0, 30.0, 90.0), (255.0, 235.0, 120.0)
"""RGB of a weak and of the strongest direction."""


def heat_map(image: np.ndarray, magnitude: np.ndarray, largest: float) -> np.ndarray:
    """The image in gray with a color where the direction is strong, uint8 (height, width, 3).

    `image` is uint8 (height, width, 3), `magnitude` (h, w) is at least 0 and is enlarged to the size of the image by
    bilinear interpolation. A magnitude of `largest` gets the full color; with a `largest` of 0 nothing is colored.
    """
    height, width, _ = image.shape
    field = Image.fromarray(np.asarray(magnitude, np.float32))
    strength = np.asarray(field.resize((width, height), Image.Resampling.BILINEAR), float)
    strength = np.clip(strength / largest, 0, 1)[..., None] if largest > 0 else np.zeros((height, width, 1))
    gray = DIMMED * image.astype(float).mean(2, keepdims=True)  # (height, width, 1)
    colour = np.array(COLD) + strength * (np.array(HOT) - np.array(COLD))  # (height, width, 3)
    return np.rint(gray * (1 - strength) + colour * strength).astype(np.uint8)


def data_url(image: np.ndarray) -> str:
    """An image, uint8 (height, width, 3), as a `data:` URL of a WebP file with at most LARGEST_SIDE pixels a side."""
    picture = Image.fromarray(image)
    small = max(picture.size) <= SMALL_SIDE
    if max(picture.size) > LARGEST_SIDE:
        picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "WEBP", lossless=small, quality=85)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
