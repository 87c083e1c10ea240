"""Which detector judges a picture: blobs in small worlds, a checkpoint of transformers elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import Field

from tdmr1_rewards.builtin.detection.blobs import MAX_SIDE, BlobDetector
from tdmr1_rewards.builtin.detection.detections import Detector
from tdmr1_rewards.options import RewardOptions

AUTO = "auto"
BLOBS = "blobs"


class DetectorOptions(RewardOptions):
    """Options of every reward that looks for objects."""

    detector: str = Field(
        AUTO,
        min_length=1,
        description="blobs: connected areas of one hue on a grey background; or a detector of transformers by hub name "
        f"or folder; auto: blobs for pictures of at most {MAX_SIDE} pixels a side, else the reward's own checkpoint",
    )
    min_area: float = Field(6.0, gt=0, description="smallest blob, in pixels at the image's own size")
    max_overlap: float = Field(
        1.0,
        gt=0,
        le=1,
        description="boxes of one class that share this part of their union are one object (the surer one); 1: never",
    )
    batch_size: int = Field(8, ge=1, description="pictures that a checkpoint sees at once; sets the memory it takes")


class DetectorChoice:
    """The detector for each batch of pictures; a checkpoint is loaded once, when it is first needed.

    `default` is the checkpoint that `auto` means for large pictures, `floor` the least confidence of interest.
    """

    def __init__(self, options: DetectorOptions, default: str, floor: float) -> None:
        self._options = options
        self._source = default if options.detector == AUTO else options.detector
        self._floor = floor
        self._device = "cpu"
        self._blobs = BlobDetector(options.min_area)
        self._checkpoint: Detector | None = None

    def set_up(self, device: str) -> None:
        """Note the device, and load the checkpoint if it is sure to be needed. Raises Tdmr1Error if that fails."""
        self._device = device
        if self._options.detector not in (AUTO, BLOBS):
            self._loaded()

    def for_images(self, images: Any) -> Detector:
        """The detector for N PIL images or one uint8 array (N, H, W, 3). Raises Tdmr1Error if it can't be loaded."""
        small = all(max(_size(image)) <= MAX_SIDE for image in images)
        if self._options.detector == BLOBS or (self._options.detector == AUTO and small):
            return self._blobs
        return self._loaded()

    def _loaded(self) -> Detector:
        if self._checkpoint is None:
            from tdmr1_rewards.builtin.detection.checkpoints import load_detector

            self._checkpoint = load_detector(
                self._source, device=self._device, batch_size=self._options.batch_size, floor=self._floor
            )
        return self._checkpoint


def _size(image: Any) -> tuple[int, int]:
    """The two sides of a PIL image or an array (H, W, 3), in either order."""
    first, second = image.shape[:2] if isinstance(image, np.ndarray) else image.size
    return first, second
