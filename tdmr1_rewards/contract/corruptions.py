"""Pictures that no reward should prefer: the ways in which a generator likes to cheat. All take uint8 (H, W, 3)."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def blank(image: np.ndarray) -> np.ndarray:
    """The picture's mean colour, and nothing else."""
    return np.broadcast_to(image.mean((0, 1)).round().astype(np.uint8), image.shape).copy()


def noise(image: np.ndarray) -> np.ndarray:
    """Uniform noise, the same each time."""
    return np.random.default_rng(0).integers(0, 256, image.shape, dtype=np.uint8)


def tiled(image: np.ndarray) -> np.ndarray:
    """The picture nine times, each a third of its size."""
    height, width = image.shape[:2]
    small = Image.fromarray(image).resize((max(width // 3, 1), max(height // 3, 1)), Image.Resampling.BILINEAR)
    rows, columns = -(-height // small.height), -(-width // small.width)
    return np.tile(np.asarray(small), (rows, columns, 1))[:height, :width]


def inverted(image: np.ndarray) -> np.ndarray:
    """Its negative."""
    return 255 - image


def compressed(image: np.ndarray) -> np.ndarray:
    """As JPEG of quality 5 leaves it."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=5)
    return np.asarray(Image.open(buffer).convert("RGB"))
