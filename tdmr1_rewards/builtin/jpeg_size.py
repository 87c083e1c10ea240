"""Size of an image as a JPEG file: the reward of DDPO's compressibility tasks (arXiv 2305.13301).

The score is minus the size in kB (1,000 bytes), or the size itself, by default at JPEG quality 95. The reward uses
neither the prompt nor a network, so it runs on every machine, and its effect on images is easy to see.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tdmr1_rewards.api import RewardBatch, RewardResult
from tdmr1_rewards.options import RewardOptions

if TYPE_CHECKING:
    from PIL.Image import Image


class JpegSizeOptions(RewardOptions):
    """The preferred file size, and the JPEG quality."""

    prefer: Literal["small", "large"] = Field(
        "small",
        description="small: the score is minus the size (compressibility); large: the size (incompressibility)",
    )
    quality: int = Field(95, ge=1, le=100, description="JPEG quality; DDPO uses 95")


class JpegSize:
    """Scores images by their JPEG size in kB: negative if small files are preferred, else positive."""

    def __init__(self, options: JpegSizeOptions) -> None:
        self._options = options

    def __call__(self, batch: RewardBatch) -> RewardResult:
        """Score N RGB images."""
        sizes = [jpeg_kilobytes(image, self._options.quality) for image in batch.images]
        sign = -1 if self._options.prefer == "small" else 1
        return RewardResult([sign * size for size in sizes], [{"kB": size} for size in sizes])


def jpeg_kilobytes(image: Image, quality: int) -> float:
    """The size of an RGB image as a JPEG file, in units of 1,000 bytes."""
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=quality)
    return file.tell() / 1000
