"""Cheap numbers about pictures, none of which a reward is trained on: what reward hacking changes first.

Images are uint8 (N, height, width, 3); every function answers one number an image, or one a group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

GREY = np.array([0.299, 0.587, 0.114])
EDGE = 24
"""Two neighbouring pixels make an edge where their grey levels (0 to 255) differ by more than this."""
LEVELS, BINS = 32, 4
"""Grey levels that entropy counts, and levels a channel of a colour histogram."""


def picture_statistics(images: np.ndarray) -> dict[str, np.ndarray]:
    """Edge density (0 to 1), entropy (bits), colourfulness and saturation (0 to 1) of each image: (N,) each."""
    pixels = images.astype(np.float32)
    return {
        "edge_density": _edge_density(pixels @ GREY),
        "entropy": _entropy(pixels @ GREY),
        "colourfulness": _colourfulness(pixels),
        "saturation": _saturation(pixels),
    }


def _edge_density(grey: np.ndarray) -> np.ndarray:
    """The share of neighbouring pairs of pixels that make an edge."""
    across, down = (np.abs(np.diff(grey, axis=axis)) > EDGE for axis in (2, 1))
    return (across.mean(axis=(1, 2)) + down.mean(axis=(1, 2))) / 2


def _entropy(grey: np.ndarray) -> np.ndarray:
    """Shannon entropy of the grey levels, in bits."""
    shares = _shares((grey * (LEVELS / 256)).astype(int), LEVELS)
    return -(shares * np.log2(np.where(shares > 0, shares, 1))).sum(axis=1)


def _colourfulness(pixels: np.ndarray) -> np.ndarray:
    """Hasler and Suesstrunk's M3: spread and size of the opponent colours."""
    red, green, blue = np.moveaxis(pixels, -1, 0)
    opponents = np.stack([red - green, (red + green) / 2 - blue])
    spread, size = opponents.std(axis=(2, 3)), opponents.mean(axis=(2, 3))
    return np.hypot(*spread) + 0.3 * np.hypot(*size)


def _saturation(pixels: np.ndarray) -> np.ndarray:
    """Mean saturation of the HSV colours."""
    highest, lowest = pixels.max(axis=-1), pixels.min(axis=-1)
    return ((highest - lowest) / np.maximum(highest, 1)).mean(axis=(1, 2))


def diversity(images: np.ndarray, group_ids: Sequence[int]) -> np.ndarray:
    """Mean absolute difference (0 to 255) of a group's images from their mean image: one number a group of several."""
    groups = np.array(group_ids)
    members = [images[groups == group].astype(np.float32) for group in dict.fromkeys(group_ids)]
    return np.array([np.abs(group - group.mean(axis=0)).mean() for group in members if len(group) > 1])


def colour_shares(images: np.ndarray) -> np.ndarray:
    """The share of each of 64 colours in each image: (N, 64)."""
    levels = (images // (256 // BINS)).astype(int)
    return _shares(levels @ np.array([BINS * BINS, BINS, 1]), BINS**3)


def similarity(images: np.ndarray, prompts: Sequence[str], teacher: Mapping[str, np.ndarray]) -> np.ndarray:
    """How far each image has the colours that the teacher's images of its prompt have on average, 0 to 1.

    `teacher` has the colour shares (64,) by prompt; images of other prompts are left out.
    """
    shares = colour_shares(images)
    known = [(own, teacher[prompt]) for own, prompt in zip(shares, prompts, strict=True) if prompt in teacher]
    return np.array([np.minimum(own, other).sum() for own, other in known])


def _shares(values: np.ndarray, count: int) -> np.ndarray:
    """Relative frequencies (N, count) of whole numbers below `count` in each row of (N, …)."""
    return np.stack([np.bincount(row.ravel(), minlength=count) for row in values]) / values[0].size
