"""Selects the detector for a batch: blobs for small images, else a checkpoint of transformers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import Field

from tdmr1_rewards.builtin.detection.blobs import MAX_SIDE, BlobDetector
from tdmr1_rewards.builtin.detection.detections import Detector
from tdmr1_rewards.options import RewardOptions

AUTO = "auto"
BLOBS = "blobs"


class DetectorOptions(RewardOptions):
    """Options shared by all rewards that detect objects."""

    detector: str = Field(
        AUTO,
        min_length=1,
        description="blobs: connected areas of one hue on a gray background; or hub name or folder of a transformers "
        f"detector; auto: blobs if no side of an image is longer than {MAX_SIDE} pixels, else the default checkpoint "
        "of the reward",
    )
    min_area: float = Field(6.0, gt=0, description="blobs: smallest area of an object, in pixels")
    max_overlap: float = Field(
        1.0,
        gt=0,
        le=1,
        description="two boxes of one class whose intersection over union reaches this count as one object, the more "
        "confident one; 1: never",
    )
    batch_size: int = Field(
        8, ge=1, description="images in one forward pass of a checkpoint; a smaller value needs less memory"
    )


@dataclass(eq=False)
class DetectorChoice:
    """Selects the detector for each batch of images. A checkpoint is loaded once, when it is first needed.

    `default` is the checkpoint that `auto` uses for large images, `floor` the lowest confidence that is reported.
    """

    options: DetectorOptions
    default: str
    floor: float
    _device: str = field(default="cpu", init=False)
    _checkpoint: Detector | None = field(default=None, init=False)

    def set_up(self, device: str) -> None:
        """Set the torch device; load the checkpoint if the options name one. Raises Tdmr1Error if loading fails."""
        self._device = device
        if self.options.detector not in (AUTO, BLOBS):
            self._load()

    def for_images(self, images: Any) -> Detector:
        """The detector for N PIL images or one uint8 array (N, H, W, 3). Raises Tdmr1Error if loading it fails."""
        small = all(max(_size(image)) <= MAX_SIDE for image in images)
        if self.options.detector == BLOBS or (self.options.detector == AUTO and small):
            return BlobDetector(self.options.min_area)
        return self._load()

    def _load(self) -> Detector:
        """The checkpoint, loaded at the first call."""
        if self._checkpoint is None:
            from tdmr1_rewards.builtin.detection.checkpoints import load_detector

            source = self.default if self.options.detector == AUTO else self.options.detector
            self._checkpoint = load_detector(
                source, device=self._device, batch_size=self.options.batch_size, floor=self.floor
            )
        return self._checkpoint


def _size(image: Any) -> tuple[int, int]:
    """The two sides of a PIL image or an array (H, W, 3), in either order."""
    first, second = image.shape[:2] if isinstance(image, np.ndarray) else image.size
    return first, second
