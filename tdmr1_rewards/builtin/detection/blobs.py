"""Objects as connected areas of one hue on a grey background: exact and quick on small clean pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from tdmr1_rewards.builtin.detection.class_names import find_class, match_class
from tdmr1_rewards.builtin.detection.detections import Detection, UnknownClassError

HUE_RANGES = {
    "red": (345, 378),
    "orange": (18, 40),
    "yellow": (40, 70),
    "green": (70, 165),
    "blue": (165, 260),
    "purple": (260, 315),
}
"""The colours that hue alone can tell, in degrees; a range may pass 360."""
HUES = tuple(HUE_RANGES)
MIN_CHROMA = 0.2
"""Of 1: what is less colourful than this is background, of whatever shade."""
EDGE_CHROMA = 0.6
"""A pixel with less than this share of the strongest colour within two pixels is a mixed one on an object's edge."""
MAX_SIDE = 64
"""Pixels: pictures with no longer side are the small worlds that `detector: auto` leaves to blobs."""

SHAPES = ("circle", "square", "triangle")
ANY_SHAPE = "shape"
"""The class that every blob belongs to."""
MIN_SKEWNESS = 0.2
"""A blob whose skewness along x or y is at least this is a triangle: an upright one has 0.57, the others have 0."""
MIN_SQUARENESS = 0.86
"""The mean of a blob's extent and of how independent its x and y are; a disc has 0.73, an upright square 1."""


@dataclass(frozen=True, eq=False)
class Blobs:
    """Connected areas in N images, numbered from 1.

    `labels` (N, H, W) has each pixel's area or 0; the rest has one entry an area: `owner` the image, `hue` the index
    in HUES, `size` in pixels.
    """

    labels: np.ndarray
    owner: np.ndarray
    hue: np.ndarray
    size: np.ndarray


class BlobDetector:
    """Finds coloured circles, squares and triangles, and `shape` for any of them; all are equally sure (score 1).

    An object is an 8-connected area of one hue of at least `min_area` pixels; touching ones of one hue are one.
    """

    def __init__(self, min_area: float) -> None:
        self._min_area = min_area

    def class_of(self, name: str) -> str:
        """The shape's name in the singular. Raises UnknownClassError for anything but a shape."""
        found = match_class(name, (*SHAPES, ANY_SHAPE))
        if found is None:
            raise UnknownClassError(
                f"blobs are told apart as {', '.join(SHAPES)} only, not as {name!r}",
                "choose a checkpoint for this class with the option 'detector'",
            )
        return found

    def class_in(self, prompt: str) -> str | None:
        """The shape that a prompt speaks of first, or None."""
        return find_class(prompt, (*SHAPES, ANY_SHAPE))

    def detect(self, images: Any, classes: Sequence[Sequence[str]]) -> list[list[Detection]]:
        """The objects of each image's classes, largest first; one can be asked for as its shape and as `shape`."""
        found = find_objects(np.stack([np.asarray(image) for image in images]), self._min_area)
        return [
            [
                Detection(name, 1.0, item.box, colour=item.colour)
                for item in objects
                for name in dict.fromkeys(wanted)
                if name in (item.label, ANY_SHAPE)
            ]
            for objects, wanted in zip(found, classes, strict=True)
        ]


def count_objects(images: np.ndarray, colours: list[tuple[str, ...]], min_area: float) -> list[int]:
    """How many objects of each image's `colours` there are in uint8 images (N, H, W, 3); none are wanted where empty.

    An object is an 8-connected area of one colour of at least `min_area` pixels.
    """
    blobs, _, _ = find_blobs(images)
    wanted = np.array([[name in names for name in HUES] for names in colours])
    counted = wanted[blobs.owner, blobs.hue] & (blobs.size >= min_area)
    return [int(count) for count in np.bincount(blobs.owner[counted], minlength=len(images))]


def find_objects(images: np.ndarray, min_area: float) -> list[list[Detection]]:
    """Every object of uint8 images (N, H, W, 3) with its shape, colour and box, largest first."""
    blobs, hue, chroma = find_blobs(images)
    labels, coverage = _soft_areas(blobs, hue, chroma)
    number, height, width = len(blobs.size), *labels.shape[1:]
    rows = _sums(labels * height + np.arange(height)[:, None], coverage, number, height)  # (B, H)
    columns = _sums(labels * width + np.arange(width), coverage, number, width)  # (B, W)
    shapes = _shapes(labels, coverage, rows, columns)
    found: list[list[Detection]] = [[] for _ in images]
    for i in np.argsort(-rows.sum(axis=1), kind="stable"):
        if blobs.size[i] >= min_area:
            left, right = _ends(columns[i])
            top, bottom = _ends(rows[i])
            drawn = Detection(shapes[i], 1.0, (left, top, right, bottom), colour=HUES[blobs.hue[i]])
            found[blobs.owner[i]].append(drawn)
    return found


def find_blobs(images: np.ndarray) -> tuple[Blobs, np.ndarray, np.ndarray]:
    """The connected areas of uint8 images (N, H, W, 3), every pixel's hue as an index in HUES or -1, and its chroma."""
    degrees, chroma = _hue_and_chroma(images)
    nearby = ndimage.maximum_filter(chroma, size=(1, 5, 5), mode="nearest")
    coloured = chroma >= np.maximum(MIN_CHROMA, EDGE_CHROMA * nearby)
    within_image = np.zeros((3, 3, 3), dtype=bool)
    within_image[1] = True
    hue = np.full(chroma.shape, -1, np.int8)
    labels = np.zeros(chroma.shape, np.int32)
    hues: list[np.ndarray] = []
    for index, (start, end) in enumerate(HUE_RANGES.values()):
        of_hue = (degrees - start) % 360 < end - start
        hue[of_hue] = index
        areas, number = ndimage.label(coloured & of_hue, structure=within_image)
        labels[areas > 0] = areas[areas > 0] + sum(map(len, hues))
        hues.append(np.full(number, index))
    total = sum(map(len, hues))
    owner = np.zeros(total + 1, dtype=np.intp)
    owner[labels] = np.arange(len(images)).reshape(-1, 1, 1)
    size = np.bincount(labels.ravel(), minlength=total + 1)
    return Blobs(labels, owner[1:], np.concatenate(hues), size[1:]), hue, chroma


def _hue_and_chroma(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hue in degrees and chroma, 0 to 1, both (N, H, W)."""
    red, green, blue = np.moveaxis(images.astype(np.float32) / 255, -1, 0)
    highest = np.maximum(np.maximum(red, green), blue)
    # Chroma and not saturation: it is linear in how much of an edge pixel the object covers, and calm near black.
    chroma = highest - np.minimum(np.minimum(red, green), blue)
    span = np.maximum(chroma, 1e-6)
    hue = np.where(highest == red, (green - blue) / span, (blue - red) / span + 2)
    hue = 60 * np.where((highest == blue) & (highest != red) & (highest != green), (red - green) / span + 4, hue)
    return hue % 360, chroma


def _soft_areas(blobs: Blobs, hue: np.ndarray, chroma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The areas with their mixed edge pixels, and how much of each pixel its object covers, 0 to 1, both (N, H, W)."""
    around = ndimage.maximum_filter(blobs.labels, size=(1, 3, 3))
    labels = np.where(blobs.labels > 0, blobs.labels, around)
    labels = np.where(np.concatenate([[-2], blobs.hue])[labels] == hue, labels, 0)
    # The object's own chroma is that of its full pixels; the mean over its area leans a little to the edge's.
    total = np.bincount(blobs.labels.ravel(), chroma.ravel(), minlength=len(blobs.size) + 1)[1:]
    full = np.concatenate([[1.0], total / np.maximum(blobs.size, 1)])
    return labels, np.clip(chroma / full[labels], 0, 1) * (labels > 0)


def _sums(keys: np.ndarray, weights: np.ndarray, number: int, length: int) -> np.ndarray:
    """Weights summed by (area, line): (B, length), less the background."""
    summed = np.bincount(keys.ravel(), weights.ravel(), minlength=(number + 1) * length)
    return summed.reshape(number + 1, length)[1:]


def _shapes(labels: np.ndarray, coverage: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> list[str]:
    """The shape of each area, told from its moments: the same at every size, and for all upright proportions."""
    y, y_variance, y_skewness = _moments(rows)
    x, x_variance, x_skewness = _moments(columns)
    from_y = np.arange(labels.shape[1])[:, None] - np.concatenate([[0.0], y])[labels]
    from_x = np.arange(labels.shape[2]) - np.concatenate([[0.0], x])[labels]
    area = np.maximum(rows.sum(axis=1), 1e-9)
    mixed = np.bincount(labels.ravel(), (coverage * (from_x * from_y) ** 2).ravel(), minlength=len(rows) + 1)[1:] / area
    independence = mixed / np.maximum(x_variance * y_variance, 1e-9)  # 2/3 for a disc, 1 for an upright square
    extent = area / np.maximum(rows.max(axis=1) * columns.max(axis=1), 1e-9)  # pi/4 for a disc, 1 for an upright square
    triangle = np.maximum(np.abs(x_skewness), np.abs(y_skewness)) >= MIN_SKEWNESS
    square = (independence + extent) / 2 >= MIN_SQUARENESS
    return [str(name) for name in np.select([triangle, square], ["triangle", "square"], "circle")]


def _moments(profiles: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, variance and skewness of the positions that each area's profile (B, length) covers."""
    weights = profiles / np.maximum(profiles.sum(axis=1, keepdims=True), 1e-9)
    positions = np.arange(profiles.shape[1])
    mean = weights @ positions
    offset = positions - mean[:, None]
    variance = np.maximum((weights * offset**2).sum(axis=1), 1e-9)
    return mean, variance, (weights * offset**3).sum(axis=1) / variance**1.5


def _ends(profile: np.ndarray) -> tuple[float, float]:
    """First and last position that an object covers along an axis, in pixels."""
    lines = np.flatnonzero(profile >= 0.5)
    return float(lines[0]), float(lines[-1] + 1)
