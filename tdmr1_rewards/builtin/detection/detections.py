"""What a detector answers, and which of its answers count: plain records and GenEval's filters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from tdmr1_rewards.errors import Tdmr1Error

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels of the image, y downwards."""


@dataclass(frozen=True, eq=False)
class Detection:
    """One object that was found: its class as the detector calls it, how sure it is (0 to 1), and where it lies.

    `mask` is a bool array (H, W) of the object's pixels if the detector draws one, and `colour` one of GenEval's
    ten colours if the detector tells it.
    """

    label: str
    score: float
    box: Box
    mask: np.ndarray | None = None
    colour: str | None = None

    @property
    def told(self) -> dict[str, Any]:
        """The detection as plain data, for people and for drawing: box, label and score."""
        drawn: dict[str, Any] = {"box": [round(float(edge), 2) for edge in self.box], "label": self.label}
        if self.colour is not None:
            drawn["colour"] = self.colour
        return {**drawn, "score": round(float(self.score), 4)}


class UnknownClassError(Tdmr1Error):
    """A class of objects that a detector was not made for."""


class Detector(Protocol):
    """Finds objects of named classes in pictures."""

    def class_of(self, name: str) -> str:
        """The detector's own name of a class. Raises UnknownClassError if it has none."""

    def class_in(self, prompt: str) -> str | None:
        """The detector's own name of what a prompt speaks of first, or None where that can't be told."""

    def detect(self, images: Any, classes: Sequence[Sequence[str]]) -> list[list[Detection]]:
        """All objects of each image's `classes`, named as `class_of` does, surest first.

        `images` are N PIL RGB images, or one uint8 array (N, H, W, 3).
        """


def strongest(
    detections: Iterable[Detection], *, threshold: float, limit: int, max_overlap: float = 1.0
) -> dict[str, list[Detection]]:
    """By class, surest first: those above `threshold`, of these the `limit` surest, less those that overlap.

    With `max_overlap` below 1, an object is dropped if its overlap (intersection over union) with a surer one of its
    class that is kept is that much or more. The order of the three steps is GenEval's (arXiv 2310.11513).
    """
    by_class: dict[str, list[Detection]] = {}
    for detection in sorted(detections, key=lambda item: -item.score):
        members = by_class.setdefault(detection.label, [])
        if detection.score > threshold and len(members) < limit:
            members.append(detection)
    kept = {label: suppress(members, max_overlap) for label, members in by_class.items()}
    return {label: members for label, members in kept.items() if members}


def suppress(detections: Sequence[Detection], max_overlap: float) -> list[Detection]:
    """Non-maximum suppression: in the given order, what overlaps no kept one by `max_overlap` or more; 1 is off."""
    if max_overlap >= 1:
        return list(detections)
    kept: list[Detection] = []
    for detection in detections:
        if all(overlap(detection.box, other.box) < max_overlap for other in kept):
            kept.append(detection)
    return kept


def overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes, 0 to 1; 0 if both are empty."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union > 0 else 0.0
