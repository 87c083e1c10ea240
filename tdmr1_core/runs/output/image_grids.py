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


def _grid(images: np.ndarray, columns: int) -> Image.Image:
    count, height, width, _ = images.shape
    factor = max(1, -(-MIN_CELL_SIZE // min(height, width)))
    rows = -(-count // columns)
    cell_height, cell_width = height * factor + GAP, width * factor + GAP
    sheet = Image.new("RGB", (columns * cell_width + GAP, rows * cell_height + GAP), "white")
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        tile = Image.fromarray(image).resize((width * factor, height * factor), Image.Resampling.NEAREST)
        sheet.paste(tile, (GAP + column * cell_width, GAP + row * cell_height))
    return sheet
