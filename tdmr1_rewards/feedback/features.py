"""Image features for the preference model: colors and edges, or a CLIP embedding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

Features = Literal["pixels", "clip"]
Extractor = Callable[[Sequence["Image"]], np.ndarray]
"""Maps N RGB images to float64 features (N, D). A row depends on its own image only."""

GRID = 6
"""Mean colors are computed on a grid of GRID x GRID cells."""
LEVELS = 4
"""Bins per channel of the color histogram."""
ORIENTATIONS = 8
"""Bins of the histogram of edge directions."""
WORKING_SIZE = 96
"""Images are resized to this many pixels per side first."""


def extractor(kind: Features, clip: str, device: str) -> Extractor:
    """The extractor of a kind of features; `clip` is the CLIP model of kind "clip", by hub name or folder.

    Raises Tdmr1Error if the CLIP model cannot be loaded.
    """
    if kind == "pixels":
        return pixel_features
    from tdmr1_rewards.builtin.clip_models import TransformersClip

    model = TransformersClip(clip, device=device)
    return lambda images: model.embed_images(images).double().cpu().numpy()


def pixel_features(images: Sequence[Image]) -> np.ndarray:
    """The features (N, 181): 64 of the color histogram, 108 of mean colors on a 6 x 6 grid, and 9 of edges."""
    return np.stack([_describe(image) for image in images])


def _describe(image: Image) -> np.ndarray:
    from PIL.Image import Resampling

    working = image.convert("RGB").resize((WORKING_SIZE, WORKING_SIZE), Resampling.BILINEAR)
    pixels = np.asarray(working, dtype=np.float64) / 255  # (S, S, 3)
    bins = np.minimum((pixels * LEVELS).astype(int), LEVELS - 1) @ (LEVELS**2, LEVELS, 1)
    histogram = np.bincount(bins.ravel(), minlength=LEVELS**3) / bins.size
    cell = WORKING_SIZE // GRID
    means = pixels.reshape(GRID, cell, GRID, cell, 3).mean(axis=(1, 3))  # (GRID, GRID, 3)
    return np.concatenate([np.sqrt(histogram), means.ravel(), _edges(pixels.mean(axis=2))])


def _edges(brightness: np.ndarray) -> np.ndarray:
    """The edges of a brightness image (S, S), (9,): the fraction in each of 8 directions, and the mean strength."""
    down, right = np.gradient(brightness)
    strength = np.hypot(down, right)
    direction = ((np.arctan2(down, right) / np.pi % 1) * ORIENTATIONS).astype(int) % ORIENTATIONS
    by_direction = np.bincount(direction.ravel(), weights=strength.ravel(), minlength=ORIENTATIONS)
    return np.append(by_direction / max(float(by_direction.sum()), 1e-9), strength.mean())
