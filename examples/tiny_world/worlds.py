"""The embedded worlds, in the form that the training of their models needs.

`pairs` has the images of `shapes`, but 90 % of them show pairs of objects.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tdmr1_core.tiny import words, world


@dataclass(frozen=True)
class World:
    """Images of one size, and captions with errors.

    `dataset(size, seed)` returns uint8 images (N, height, width, 3) and their captions. `captions()` returns all
    captions that a dataset can contain. Each entry of `vocabulary` becomes one token; other words are tokenized as
    letters. `prompt_length` is the number of tokens, including start and end.
    """

    height: int
    width: int
    prompt_length: int
    vocabulary: Sequence[str]
    captions: Callable[[], list[str]]
    dataset: Callable[[int, int], tuple[np.ndarray, list[str]]]


SHAPES = World(
    height=world.IMAGE_SIZE,
    width=world.IMAGE_SIZE,
    prompt_length=12,
    vocabulary=world.vocabulary(),
    captions=lambda: [caption.text for caption in world.training_captions()],
    dataset=lambda size, seed: world.make_dataset(size, seed, world.CaptionNoise())[:2],
)
WORLDS = {
    "shapes": SHAPES,
    "pairs": replace(
        SHAPES, dataset=lambda size, seed: world.make_dataset(size, seed, world.PAIRS_NOISE, 0.9, ordered=True)[:2]
    ),
    "words": World(
        height=words.HEIGHT,
        width=words.WIDTH,
        prompt_length=10,
        vocabulary=words.vocabulary(),
        captions=lambda: [caption.text for caption in words.training_captions()],
        dataset=lambda size, seed: words.make_dataset(size, seed, words.SpellingNoise())[:2],
    ),
}
