"""What a preference model looks at in a picture: colours and shading, or the embedding of a CLIP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

Features = Literal["pixels", "clip"]
Extractor = Callable[[Sequence["Image"]], np.ndarray]
"""N RGB images to float64 (N, D), one row an image, whatever the others are."""

GRID = 6
"""Cells a side that colours are averaged over."""
LEVELS = 4
"""Bins a channel of the colour histogram."""
ORIENTATIONS = 8
"""Bins of the edges' directions."""
WORKING_SIZE = 96
"""Pictures are looked at in this many pixels a side."""


def extractor(kind: Features, clip: str, device: str) -> Extractor:
    """The features of that kind; `clip` names the transformers CLIP of "clip". Raises Tdmr1Error if it can't be had."""
    if kind == "pixels":
        return pixel_features
    from tdmr1_rewards.builtin.clip_models import TransformersClip

    model = TransformersClip(clip, device=device)
    return lambda images: model.embed_images(images).double().cpu().numpy()


def pixel_features(images: Sequence[Image]) -> np.ndarray:
    """Colour histogram (64), mean colours on a 6 x 6 grid (108), edge directions and strength (9): (N, 181)."""
    return np.stack([_describe(image) for image in images])


def _describe(image: Image) -> np.ndarray:
    from PIL.Image import Resampling

    working = image.convert("RGB").resize((WORKING_SIZE, WORKING_SIZE), Resampling.BILINEAR)
    pixels = np.asarray(working, dtype=np.float64) / 255  # (S, S, 3)
    bins = np.minimum((pixels * LEVELS).astype(int), LEVELS - 1) @ (LEVELS**2, LEVELS, 1)
    histogram = np.bincount(bins.ravel(), minlength=LEVELS**3) / bins.size
    cell = WORKING_SIZE // GRID
    means = pixels.reshape(GRID, cell, GRID, cell, 3).mean(axis=(1, 3))
    return np.concatenate([np.sqrt(histogram), means.ravel(), _edges(pixels.mean(axis=2))])


def _edges(shade: np.ndarray) -> np.ndarray:
    """Shares of edge strength by direction (8), and the mean strength."""
    down, right = np.gradient(shade)
    strength = np.hypot(down, right)
    direction = ((np.arctan2(down, right) / np.pi % 1) * ORIENTATIONS).astype(int) % ORIENTATIONS
    shares = np.bincount(direction.ravel(), weights=strength.ravel(), minlength=ORIENTATIONS)
    return np.append(shares / max(float(shares.sum()), 1e-9), strength.mean())
