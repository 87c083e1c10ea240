"""Records of detected objects, the interface of a detector, and GenEval's filters of detections."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from tdmr1_rewards.errors import Tdmr1Error

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels of the image; y points down."""


@dataclass(frozen=True, eq=False)
class Detection:
    """One detected object: the detector's name of its class, the confidence (0 to 1), and the box.

    `mask` is a bool array (H, W) of the object's pixels if the detector segments objects. `colour` is one of GenEval's
    ten colors if the detector determines it.
    """

    label: str
    score: float
    box: Box
    mask: np.ndarray | None = None
    colour: str | None = None

    def document(self) -> dict[str, Any]:
        """The detection as plain data, without the mask."""
        data: dict[str, Any] = {"box": [round(float(edge), 2) for edge in self.box], "label": self.label}
        if self.colour is not None:
            data["colour"] = self.colour
        return {**data, "score": round(float(self.score), 4)}


class UnknownClassError(Tdmr1Error):
    """The detector does not know the class of objects that a prompt or its metadata names."""


class Detector(Protocol):
    """Finds objects of given classes in images."""

    def class_of(self, name: str) -> str:
        """The detector's own name of a class. Raises UnknownClassError if it has none."""

    def class_in(self, prompt: str) -> str | None:
        """The detector's own name of the first class that a prompt mentions, or None if there is none."""

    def detect(self, images: Any, classes: Sequence[Sequence[str]]) -> list[list[Detection]]:
        """For each image, all objects of its `classes` (names from `class_of`), highest confidence first.

        `images` are N PIL RGB images, or one uint8 array (N, H, W, 3).
        """


def strongest(
    detections: Iterable[Detection], *, threshold: float, limit: int, max_overlap: float = 1.0
) -> dict[str, list[Detection]]:
    """The filtered detections of each class, highest confidence first.

    Three steps, in the order of GenEval's script (arXiv 2310.11513): keep those above `threshold`, keep the `limit`
    most confident of each class, apply non-maximum suppression with `max_overlap` (see `suppress`). As in the script,
    confidences are compared with `threshold` in single precision. Equal confidences keep the order of `detections`.
    """
    least = np.float32(threshold)
    by_class: dict[str, list[Detection]] = {}
    for detection in sorted(detections, key=lambda item: -item.score):
        members = by_class.setdefault(detection.label, [])
        if np.float32(detection.score) > least and len(members) < limit:
            members.append(detection)
    kept = {label: suppress(members, max_overlap) for label, members in by_class.items()}
    return {label: members for label, members in kept.items() if members}


def suppress(detections: Sequence[Detection], max_overlap: float) -> list[Detection]:
    """Non-maximum suppression of detections in descending confidence.

    A detection is dropped if its overlap with a kept one is `max_overlap` or more; at 1, all are kept.
    """
    if max_overlap >= 1:
        return list(detections)
    kept: list[Detection] = []
    for detection in detections:
        if all(overlap(detection.box, other.box) < max_overlap for other in kept):
            kept.append(detection)
    return kept


def overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes, 0 to 1, as GenEval's script computes it: every side is 1 pixel longer.

    The script takes right and bottom for the last pixels inside. Boxes that share an edge therefore overlap.
    """
    intersection = _area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    union = _area(a) + _area(b) - intersection
    return intersection / union if union > 0 else 0.0


def _area(box: Box) -> float:
    """The area of a box in pixels, with the column `right` and the row `bottom`; 0 if it is turned inside out."""
    return max(box[2] - box[0] + 1, 0.0) * max(box[3] - box[1] + 1, 0.0)
