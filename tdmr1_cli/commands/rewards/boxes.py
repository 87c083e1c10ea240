"""Draws the boxes that a reward returns on a copy of the image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tdmr1_core.errors import Tdmr1Error

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

COLORS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")
SMALLEST = 256
"""Smaller images are enlarged by an integer factor to at least this many pixels, so that labels are readable."""


def draw_boxes(image: np.ndarray, boxes: Sequence[Mapping[str, Any]]) -> Image:
    """A copy of a uint8 image (H, W, 3) with `boxes`, each {"box": [x0, y0, x1, y1], "label": …, "score": …}.

    Coordinates are pixels from the upper left corner of the image. Boxes with the same label have the same color.
    Raises Tdmr1Error if an entry is not a box.
    """
    from PIL import Image, ImageDraw

    factor = max(1, -(-SMALLEST // min(image.shape[:2])))
    size = (image.shape[1] * factor, image.shape[0] * factor)
    drawn = Image.fromarray(image).resize(size, Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(drawn)
    labels = list(dict.fromkeys(str(entry.get("label", "")) for entry in boxes))
    for entry in boxes:
        left, top, right, bottom = (factor * value for value in _corners(entry))
        label = str(entry.get("label", ""))
        color = COLORS[labels.index(label) % len(COLORS)]
        draw.rectangle((left, top, right, bottom), outline=color, width=2)
        score = entry.get("score")
        caption = f"{label} {score:.2f}" if isinstance(score, float) else label
        draw.text((left + 3, top + 2), caption, fill=color, stroke_width=1, stroke_fill="white")
    return drawn


def _corners(entry: Mapping[str, Any]) -> tuple[float, float, float, float]:
    try:
        left, top, right, bottom = (float(value) for value in entry["box"])
    except (KeyError, TypeError, ValueError) as error:
        raise Tdmr1Error(
            f"the details of the reward contain {entry!r}, which is not a box",
            'a box is {"box": [x0, y0, x1, y1], "label": …, "score": …}',
            code="reward-result",
            values={"entry": repr(entry)},
        ) from error
    return min(left, right), min(top, bottom), max(left, right), max(top, bottom)
