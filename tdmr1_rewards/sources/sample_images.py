"""Drawn images with prompts, for tests of a reward that has no examples of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

PROMPTS = (
    "three red circles",
    'a shop sign that says "OPEN"',
    "a photo of a cat on a sofa",
    "a blue square left of a yellow triangle",
)
"""Prompts of the sample images: a count, a text, an object, a relation."""
SIZE = 96
"""Height and width in pixels."""


@dataclass(frozen=True, eq=False)
class Sample:
    """An image, uint8 (96, 96, 3), its prompt, and the number of the prompt."""

    image: np.ndarray
    prompt: str
    group: int


def draw_samples() -> list[Sample]:
    """Eight images, two for each of PROMPTS. They are always the same. Needs numpy and Pillow."""
    import numpy as np
    from PIL import Image, ImageDraw

    rng = np.random.default_rng(0)
    samples = []
    for group, prompt in enumerate(PROMPTS):
        for _ in range(2):
            image = Image.new("RGB", (SIZE, SIZE), tuple(int(value) for value in rng.integers(100, 200, 3)))
            draw = ImageDraw.Draw(image)
            for _ in range(int(rng.integers(2, 6))):
                left, top = (int(value) for value in rng.integers(0, 70, 2))
                color = tuple(int(value) for value in rng.integers(0, 256, 3))
                shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
                shape((left, top, left + 20, top + 20), fill=color)
            draw.text((8, 80), "OPEN" if group == 1 else "", fill="black")
            samples.append(Sample(np.asarray(image), prompt, group))
    return samples
