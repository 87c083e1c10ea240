"""Cheap statistics of images. No reward trains them, so they change first when a model hacks its reward.

Images are uint8 (N, height, width, 3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

GREY = np.array([0.299, 0.587, 0.114])
EDGE = 24
"""Two neighbouring pixels form an edge if their grey levels (0 to 255) differ by more than this."""
LEVELS, BINS = 32, 4
"""The number of grey levels for the entropy, and the levels of each channel in a colour histogram."""


def image_statistics(images: np.ndarray) -> dict[str, np.ndarray]:
    """Edge density (0 to 1), entropy (bits), colourfulness and saturation (0 to 1) of each image: (N,) each."""
    pixels = images.astype(np.float32)  # (N, height, width, 3)
    return {
        "edge_density": _edge_density(pixels @ GREY),
        "entropy": _entropy(pixels @ GREY),
        "colourfulness": _colourfulness(pixels),
        "saturation": _saturation(pixels),
    }


def _edge_density(grey: np.ndarray) -> np.ndarray:
    """The fraction of neighbouring pixel pairs that form an edge, of (N, height, width) to (N,)."""
    across, down = (np.abs(np.diff(grey, axis=axis)) > EDGE for axis in (2, 1))
    return (across.mean(axis=(1, 2)) + down.mean(axis=(1, 2))) / 2


def _entropy(grey: np.ndarray) -> np.ndarray:
    """Shannon entropy of the grey levels in bits, of (N, height, width) to (N,)."""
    frequencies = _frequencies((grey * (LEVELS / 256)).astype(int), LEVELS)
    return -(frequencies * np.log2(np.where(frequencies > 0, frequencies, 1))).sum(axis=1)


def _colourfulness(pixels: np.ndarray) -> np.ndarray:
    """The metric M3 of Hasler and Suesstrunk (2003): standard deviation and mean of the opponent colours, (N,)."""
    red, green, blue = np.moveaxis(pixels, -1, 0)
    opponents = np.stack([red - green, (red + green) / 2 - blue])  # (2, N, height, width)
    deviations, means = opponents.std(axis=(2, 3)), opponents.mean(axis=(2, 3))
    return np.hypot(*deviations) + 0.3 * np.hypot(*means)


def _saturation(pixels: np.ndarray) -> np.ndarray:
    """Mean saturation of the HSV colours, (N,)."""
    highest, lowest = pixels.max(axis=-1), pixels.min(axis=-1)
    return ((highest - lowest) / np.maximum(highest, 1)).mean(axis=(1, 2))


def diversity(images: np.ndarray, group_ids: Sequence[int]) -> np.ndarray:
    """The mean absolute difference (0 to 255) of a group's images from their mean image, for each group of several."""
    groups = np.array(group_ids)
    members = [images[groups == group].astype(np.float32) for group in dict.fromkeys(group_ids)]
    return np.array([np.abs(group - group.mean(axis=0)).mean() for group in members if len(group) > 1])


def colour_histogram(images: np.ndarray) -> np.ndarray:
    """The fraction of each of 64 colours in each image: (N, 64)."""
    levels = (images // (256 // BINS)).astype(int)
    return _frequencies(levels @ np.array([BINS * BINS, BINS, 1]), BINS**3)


def similarity(images: np.ndarray, prompts: Sequence[str], teacher: Mapping[str, np.ndarray]) -> np.ndarray:
    """The overlap (0 to 1) of each image's colours with the mean colours of the teacher's images of its prompt.

    `teacher` maps a prompt to its mean colour histogram (64,). Images of other prompts are skipped.
    """
    histograms = colour_histogram(images)
    pairs = [(ours, teacher[prompt]) for ours, prompt in zip(histograms, prompts, strict=True) if prompt in teacher]
    return np.array([np.minimum(ours, theirs).sum() for ours, theirs in pairs])


def _frequencies(values: np.ndarray, count: int) -> np.ndarray:
    """Relative frequencies (N, count) of the integers 0 to count - 1 in each row of (N, …)."""
    return np.stack([np.bincount(row.ravel(), minlength=count) for row in values]) / values[0].size
