"""Detects objects as connected areas of one hue on a gray background; exact and fast on small, clean images."""

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
"""The colors that hue alone determines: start and end in degrees, end excluded; a range may pass 360."""
HUES = tuple(HUE_RANGES)
MIN_CHROMA = 0.2
"""Pixels with a chroma (0 to 1) below this are background, whatever their brightness."""
EDGE_CHROMA = 0.6
"""Pixels with a chroma below this fraction of the highest within two pixels are the mixed edge of an object."""
MAX_SIDE = 64
"""Longest side, in pixels, of the images for which `detector: auto` uses blobs."""

SHAPES = ("circle", "square", "triangle")
ANY_SHAPE = "shape"
"""The class of every blob."""
MIN_SKEWNESS = 0.2
"""A blob with at least this absolute skewness along x or y is a triangle.

An upright triangle has 0.57; circles and squares have 0.
"""
MIN_SQUARENESS = 0.86
"""A blob that is not a triangle is a square if the mean of its extent and its x-y independence is at least this.

A disc has 0.73, an upright square 1; see `_classify_shapes`.
"""


@dataclass(frozen=True, eq=False)
class Blobs:
    """B connected areas in N images, numbered from 1.

    `labels` holds the number of each pixel's area, 0 for none. The other arrays have one entry for each area: `image`
    is the index of its image, `hue` the index in HUES, `size` the number of pixels.
    """

    labels: np.ndarray  # (N, H, W)
    image: np.ndarray  # (B,)
    hue: np.ndarray  # (B,)
    size: np.ndarray  # (B,)


@dataclass(frozen=True)
class BlobDetector:
    """Finds colored circles, squares and triangles; the class `shape` stands for any of them. Every confidence is 1.

    An object is an 8-connected area of one hue of at least `min_area` pixels. Touching objects of one hue are detected
    as one.
    """

    min_area: float
    """In pixels."""

    def class_of(self, name: str) -> str:
        """The name of the shape in the singular. Raises UnknownClassError if `name` is not a shape."""
        found = match_class(name, (*SHAPES, ANY_SHAPE))
        if found is None:
            raise UnknownClassError(
                f"the detector 'blobs' does not know the class {name!r}; it knows {', '.join((*SHAPES, ANY_SHAPE))}",
                "name a checkpoint that knows the class with the option 'detector'",
                code="reward-metadata",
                values={"class": name, "known": [*SHAPES, ANY_SHAPE]},
            )
        return found

    def class_in(self, prompt: str) -> str | None:
        """The first shape that a prompt mentions, or None."""
        return find_class(prompt, (*SHAPES, ANY_SHAPE))

    def detect(self, images: Any, classes: Sequence[Sequence[str]]) -> list[list[Detection]]:
        """The objects of each image's classes, largest first; an object is listed for its shape and for `shape`."""
        found = find_objects(np.stack([np.asarray(image) for image in images]), self.min_area)
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
    """The number of objects in each of N uint8 images (N, H, W, 3) whose color is in the image's entry of `colours`.

    An object is an 8-connected area of one color of at least `min_area` pixels.
    """
    blobs, _, _ = find_blobs(images)
    wanted = np.array([[name in names for name in HUES] for names in colours])  # (N, len(HUES))
    counted = wanted[blobs.image, blobs.hue] & (blobs.size >= min_area)
    return [int(count) for count in np.bincount(blobs.image[counted], minlength=len(images))]


def find_objects(images: np.ndarray, min_area: float) -> list[list[Detection]]:
    """For each of N uint8 images (N, H, W, 3), its objects with shape, color and box, largest first."""
    blobs, hue, chroma = find_blobs(images)
    labels, coverage = _add_edge_pixels(blobs, hue, chroma)
    number, height, width = len(blobs.size), *labels.shape[1:]
    rows = _sums(labels * height + np.arange(height)[:, None], coverage, number, height)  # (B, H)
    columns = _sums(labels * width + np.arange(width), coverage, number, width)  # (B, W)
    shapes = _classify_shapes(labels, coverage, rows, columns)
    found: list[list[Detection]] = [[] for _ in images]
    for i in np.argsort(-rows.sum(axis=1), kind="stable"):
        if blobs.size[i] >= min_area:
            left, right = _ends(columns[i])
            top, bottom = _ends(rows[i])
            detection = Detection(shapes[i], 1.0, (left, top, right, bottom), colour=HUES[blobs.hue[i]])
            found[blobs.image[i]].append(detection)
    return found


def find_blobs(images: np.ndarray) -> tuple[Blobs, np.ndarray, np.ndarray]:
    """The connected areas of uint8 images (N, H, W, 3); the hue of each pixel as an index in HUES, or -1; its chroma.

    Hue and chroma are (N, H, W); chroma is 0 to 1.
    """
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
    image = np.zeros(total + 1, dtype=np.intp)
    image[labels] = np.arange(len(images)).reshape(-1, 1, 1)
    size = np.bincount(labels.ravel(), minlength=total + 1)
    return Blobs(labels, image[1:], np.concatenate(hues), size[1:]), hue, chroma


def _hue_and_chroma(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hue in degrees and chroma, 0 to 1, both (N, H, W)."""
    red, green, blue = np.moveaxis(images.astype(np.float32) / 255, -1, 0)
    highest = np.maximum(np.maximum(red, green), blue)
    # Chroma, not saturation: it is linear in the covered fraction of an edge pixel, and not noisy near black.
    chroma = highest - np.minimum(np.minimum(red, green), blue)
    span = np.maximum(chroma, 1e-6)
    hue = np.where(highest == red, (green - blue) / span, (blue - red) / span + 2)
    hue = 60 * np.where((highest == blue) & (highest != red) & (highest != green), (red - green) / span + 4, hue)
    return hue % 360, chroma


def _add_edge_pixels(blobs: Blobs, hue: np.ndarray, chroma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The areas with their mixed edge pixels, and the covered fraction (0 to 1) of each pixel; both (N, H, W)."""
    around = ndimage.maximum_filter(blobs.labels, size=(1, 3, 3))
    labels = np.where(blobs.labels > 0, blobs.labels, around)
    labels = np.where(np.concatenate([[-2], blobs.hue])[labels] == hue, labels, 0)
    # The chroma of a fully covered pixel, estimated by the mean over the area; edge pixels make it slightly too low.
    total = np.bincount(blobs.labels.ravel(), chroma.ravel(), minlength=len(blobs.size) + 1)[1:]
    full = np.concatenate([[1.0], total / np.maximum(blobs.size, 1)])
    return labels, np.clip(chroma / full[labels], 0, 1) * (labels > 0)


def _sums(keys: np.ndarray, weights: np.ndarray, number: int, length: int) -> np.ndarray:
    """Weights summed for each area and line, (B, length), without the background; `keys` are area * length + line."""
    summed = np.bincount(keys.ravel(), weights.ravel(), minlength=(number + 1) * length)
    return summed.reshape(number + 1, length)[1:]


def _classify_shapes(labels: np.ndarray, coverage: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> list[str]:
    """The shape of each area, from its moments; independent of its size and of its height-to-width ratio."""
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
    """Mean, variance and skewness of position, each (B,), for profiles (B, length) of covered pixels."""
    weights = profiles / np.maximum(profiles.sum(axis=1, keepdims=True), 1e-9)
    positions = np.arange(profiles.shape[1])
    mean = weights @ positions
    offset = positions - mean[:, None]
    variance = np.maximum((weights * offset**2).sum(axis=1), 1e-9)
    return mean, variance, (weights * offset**3).sum(axis=1) / variance**1.5


def _ends(profile: np.ndarray) -> tuple[float, float]:
    """Start and end of an object along an axis, in pixels, end excluded."""
    lines = np.flatnonzero(profile >= 0.5)
    return float(lines[0]), float(lines[-1] + 1)
