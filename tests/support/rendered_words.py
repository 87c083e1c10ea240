"""Words drawn in several fonts and degraded in several ways, with the text to read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

WORDS = ("Open", "Bakery", "Gate 42", "Fresh Bread", "Spring", "Exit", "Museum", "Hello World", "Route 66", "Tea House")
KINDS = ("clean", "noisy", "rotated", "low contrast", "blurred", "inverted")
SIZE = (320, 160)


@dataclass(frozen=True)
class Rendered:
    """An image of SIZE with one text, drawn in one of FONTS and degraded by the method `kind`."""

    kind: str
    text: str
    image: Image.Image


@cache
def fonts() -> tuple[ImageFont.ImageFont | ImageFont.FreeTypeFont, ...]:
    """Pillow's default font, and those of four DejaVu fonts that the system has."""
    found: list[ImageFont.ImageFont | ImageFont.FreeTypeFont] = [ImageFont.load_default(36)]
    for name in ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSansMono"):
        with suppress(OSError):
            found.append(ImageFont.truetype(f"{name}.ttf", 36))
    return tuple(found)


def rendered_words() -> Iterator[Rendered]:
    """Every word with every degradation, in alternating fonts: 60 images, the same in each call."""
    rng = np.random.default_rng(0)
    for row, kind in enumerate(KINDS):
        for column, text in enumerate(WORDS):
            yield Rendered(kind, text, _draw(kind, text, fonts()[(row + column) % len(fonts())], rng))


def _draw(
    kind: str, text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, rng: np.random.Generator
) -> Image.Image:
    paper, ink = {"low contrast": ((150, 150, 145), (126, 128, 132)), "inverted": ((20, 30, 60), (250, 220, 90))}.get(
        kind, ((240, 238, 230), (25, 25, 35))
    )
    image = Image.new("RGB", SIZE, paper)
    ImageDraw.Draw(image).text((SIZE[0] / 2, SIZE[1] / 2), text, fill=ink, font=font, anchor="mm")
    if kind == "rotated":
        image = image.rotate(float(rng.uniform(-20, 20)), Image.Resampling.BICUBIC, fillcolor=paper)
    if kind == "blurred":
        image = image.filter(ImageFilter.GaussianBlur(3))
    if kind == "noisy":
        noisy = np.asarray(image, dtype=np.float64) + rng.normal(0, 90, (SIZE[1], SIZE[0], 3))
        image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
    return image
