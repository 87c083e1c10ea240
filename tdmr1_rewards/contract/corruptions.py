"""Corruptions that no reward should prefer, since a generator may exploit them. All map uint8 (H, W, 3) to itself."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def blank(image: np.ndarray) -> np.ndarray:
    """The mean color of the image everywhere."""
    return np.broadcast_to(image.mean((0, 1)).round().astype(np.uint8), image.shape).copy()


def noise(image: np.ndarray) -> np.ndarray:
    """Uniform noise, always the same."""
    return np.random.default_rng(0).integers(0, 256, image.shape, dtype=np.uint8)


def tiled(image: np.ndarray) -> np.ndarray:
    """Nine copies of the image, each a third of its width and height."""
    height, width = image.shape[:2]
    small = Image.fromarray(image).resize((max(width // 3, 1), max(height // 3, 1)), Image.Resampling.BILINEAR)
    rows, columns = -(-height // small.height), -(-width // small.width)
    return np.tile(np.asarray(small), (rows, columns, 1))[:height, :width]


def inverted(image: np.ndarray) -> np.ndarray:
    """The negative of the image."""
    return 255 - image


def compressed(image: np.ndarray) -> np.ndarray:
    """The image after JPEG compression with quality 5."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=5)
    return np.asarray(Image.open(buffer).convert("RGB"))
