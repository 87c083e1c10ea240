"""Image grids of samples, as PNG files."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CAPTION_HEIGHT = 22
GAP = 4
MIN_CELL_SIZE = 72
"""Smaller images are enlarged by a whole factor to at least this height and width, in pixels."""


def png(image: Image.Image) -> bytes:
    """The content of the PNG file of an image."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def webp(image: Image.Image, quality: int | None) -> bytes:
    """The content of the WebP file of an image, with a quality of 1 to 100, or without loss for None."""
    file = io.BytesIO()
    if quality is None:  # higher values take ten times as long and save little
        image.save(file, "WEBP", lossless=True, quality=50, method=2)
    else:
        image.save(file, "WEBP", quality=quality, method=4)
    return file.getvalue()


def grid(images: np.ndarray, columns: int) -> bytes:
    """Images uint8 (N, height, width, 3) as a grid with `columns` images per row."""
    return png(_grid(images, columns))


def before_after(before: np.ndarray, after: np.ndarray, captions: Sequence[str], titles: tuple[str, str]) -> bytes:
    """One row per caption: its images before on the left, its images after on the right.

    `before` and `after` are uint8 (captions, columns, height, width, 3); `titles` are the headings of the two sides.
    """
    blocks = []
    for caption, images_before, images_after in zip(captions, before, after, strict=True):
        left, right = _grid(images_before, len(images_before)), _grid(images_after, len(images_after))
        block = Image.new("RGB", (left.width + 5 * GAP + right.width, CAPTION_HEIGHT + left.height), "white")
        pen = ImageDraw.Draw(block)
        font = ImageFont.load_default(14)
        pen.text((GAP, 2), f"“{caption}”   {titles[0]}", fill="black", font=font)
        pen.text((left.width + 6 * GAP, 2), titles[1], fill="black", font=font)
        block.paste(left, (0, CAPTION_HEIGHT))
        block.paste(right, (left.width + 5 * GAP, CAPTION_HEIGHT))
        blocks.append(block)
    sheet = Image.new("RGB", (max(b.width for b in blocks), sum(b.height + GAP for b in blocks)), "white")
    top = 0
    for block in blocks:
        sheet.paste(block, (0, top))
        top += block.height + GAP
    return png(sheet)


def cell_boxes(count: int, height: int, width: int, columns: int) -> list[tuple[int, int, int, int]]:
    """Left, top, right and bottom of each image in a grid of `count` images of this height and width, in pixels."""
    factor = max(1, -(-MIN_CELL_SIZE // min(height, width)))
    height, width = height * factor, width * factor
    places = [divmod(index, columns) for index in range(count)]
    corners = [(GAP + column * (width + GAP), GAP + row * (height + GAP)) for row, column in places]
    return [(left, top, left + width, top + height) for left, top in corners]


def _grid(images: np.ndarray, columns: int) -> Image.Image:
    count, height, width, _ = images.shape
    boxes = cell_boxes(count, height, width, columns)
    right = cell_boxes(columns, height, width, columns)[-1][2]
    size = right + GAP, boxes[-1][3] + GAP
    sheet = Image.new("RGB", size, "white")
    for image, (left, top, right, bottom) in zip(images, boxes, strict=True):
        tile = Image.fromarray(image).resize((right - left, bottom - top), Image.Resampling.NEAREST)
        sheet.paste(tile, (left, top))
    return sheet
