"""Boxes that a reward found, drawn on a copy of the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tdmr1_core.errors import Tdmr1Error

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")
SMALLEST = 256
"""Smaller pictures are enlarged by a whole factor to at least this many pixels, so that a label can be read."""


def draw_boxes(image: np.ndarray, boxes: Sequence[Mapping[str, Any]]) -> Image:
    """A copy of a uint8 picture (H, W, 3) with `boxes`, each {"box": [x0, y0, x1, y1], "label": …, "score": …}.

    Coordinates are pixels of the picture, from its upper left corner; every label has a colour of its own. Raises
    Tdmr1Error for what is no box.
    """
    from PIL import Image, ImageDraw

    factor = max(1, -(-SMALLEST // min(image.shape[:2])))
    size = (image.shape[1] * factor, image.shape[0] * factor)
    picture = Image.fromarray(image).resize(size, Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(picture)
    labels = list(dict.fromkeys(str(entry.get("label", "")) for entry in boxes))
    for entry in boxes:
        left, top, right, bottom = (factor * value for value in _corners(entry))
        label = str(entry.get("label", ""))
        colour = COLOURS[labels.index(label) % len(COLOURS)]
        draw.rectangle((left, top, right, bottom), outline=colour, width=2)
        score = entry.get("score")
        told = f"{label} {score:.2f}" if isinstance(score, float) else label
        draw.text((left + 3, top + 2), told, fill=colour, stroke_width=1, stroke_fill="white")
    return picture


def _corners(entry: Mapping[str, Any]) -> tuple[float, float, float, float]:
    try:
        left, top, right, bottom = (float(value) for value in entry["box"])
    except (KeyError, TypeError, ValueError) as error:
        told = f"the reward's details hold {entry!r}, which is no box"
        raise Tdmr1Error(told, '{"box": [x0, y0, x1, y1]} is one') from error
    return min(left, right), min(top, bottom), max(left, right), max(top, bottom)
