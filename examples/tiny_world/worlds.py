"""The embedded worlds, as what makes their models needs them; that of pairs has the shapes' pictures, mostly of two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tdmr1_core.tiny import words, world


@dataclass(frozen=True)
class World:
    """Pictures of one size with noisy captions.

    `dataset(size, seed)` answers uint8 pictures (N, height, width, 3) and their captions, `captions()` every caption
    that it can hold, and `vocabulary` the words and signs that become one token each; any other word is spelt in
    letters. `prompt_length` counts tokens, start and end included.
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
