"""Unrewarded metrics of images of words, measured by independent code: the nearest word and the image quality.

An image is compared with all 512 words, rendered as in the world at many positions, by the correlation of the
darkness of the pixels. Brightness and contrast therefore have no influence. The code shares nothing with OCR engines,
so an image that cheats an engine does not necessarily cheat this code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
from image_metrics import pixel_distance
from numpy.typing import NDArray

from tdmr1_core.tiny import words

Array = NDArray[np.float32]

SHIFTS = np.arange(-2.0, 2.01, 0.5)
"""Offsets of a word from the center that are compared, in pixels along each axis. The world uses offsets up to 1."""
INK, CLEAR = 0.6, 0.02
"""A pixel is ink if the template covers at least INK of it, and background if it covers at most CLEAR (0 to 1)."""
CHUNK = 64
"""Images per chunk. It affects only memory and speed."""


@dataclass(frozen=True)
class Reading:
    """The word that is most similar to an image. `likeness` is the correlation, -1 to 1."""

    word: str
    likeness: float
    contrast: float
    background_noise: float


def read(images: np.ndarray) -> list[Reading]:
    """The nearest word of each image; images are uint8 (N, 16, 36, 3), else ValueError."""
    if images.dtype != np.uint8 or images.shape[1:] != (words.HEIGHT, words.WIDTH, 3):
        raise ValueError(f"expected uint8 (N, {words.HEIGHT}, {words.WIDTH}, 3), got {images.dtype} {images.shape}")
    light = images.reshape(len(images), -1, 3).mean(axis=2).astype(np.float32) / np.float32(255)
    return [reading for start in range(0, len(light), CHUNK) for reading in _read_chunk(light[start : start + CHUNK])]


def measure_words(images: np.ndarray, requested: Sequence[str], group_ids: np.ndarray) -> dict[str, list[float]]:
    """Compare uint8 images (N, 16, 36, 3) with the requested words; `pixel_distance` has one value per group.

    - `nearest_exact`: 1 if the nearest word is the requested one, else 0
    - `nearest_letters`: fraction of the letters of the nearest word that are as requested, 0 to 1
    - `likeness`: correlation with the nearest word, -1 to 1
    - `contrast`: mean brightness of the background minus that of the ink, -1 to 1
    - `background_noise`: standard deviation of the background, 0 to 0.5 (white is 1)
    - `pixel_distance`: difference between the images of one prompt, 0 to 1 (see `image_metrics.pixel_distance`)
    """
    readings = read(images)
    pairs = list(zip(readings, requested, strict=True))
    letters = [np.mean([a == b for a, b in zip(reading.word, word, strict=True)]) for reading, word in pairs]
    return {
        "nearest_exact": [float(reading.word == word) for reading, word in pairs],
        "nearest_letters": [float(fraction) for fraction in letters],
        "likeness": [reading.likeness for reading in readings],
        "contrast": [reading.contrast for reading in readings],
        "background_noise": [reading.background_noise for reading in readings],
        "pixel_distance": [pixel_distance(images[group_ids == group]) for group in np.unique(group_ids)],
    }


def _read_chunk(light: Array) -> list[Reading]:
    """Read images given as brightness (N, P), 0 to 1."""
    ink, normed = _templates()
    dark = light.mean(axis=1, keepdims=True) - light
    dark /= np.maximum(np.linalg.norm(dark, axis=1, keepdims=True), 1e-6)
    likeness = dark @ normed  # (N, M)
    best = likeness.argmax(axis=1)
    return [_reading(*parts) for parts in zip(light, ink[best], best, likeness.max(axis=1), strict=True)]


def _reading(light: Array, ink: Array, template: int, likeness: float) -> Reading:
    """The reading of one image: `light` and the `ink` of its template are (P,)."""
    background = light[ink <= CLEAR]
    contrast = float(background.mean() - light[ink >= INK].mean())
    return Reading(_words()[template % len(_words())], float(likeness), contrast, float(background.std()))


@cache
def _words() -> list[str]:
    return [caption.word for caption in words.word_captions()]


@cache
def _templates() -> tuple[Array, Array]:
    """The ink of every word at every shift, 0 to 1 (M, P), and the same with mean 0 and norm 1 (P, M)."""
    alphabet = {letter: index for index, letter in enumerate(words.LETTERS)}
    chosen = np.array([[alphabet[letter] for letter in word] for word in _words()])
    templates = []
    for shift in product(SHIFTS, SHIFTS):
        letters = np.stack([[_letter(letter, place, shift) for letter in alphabet] for place in range(chosen.shape[1])])
        templates.append(sum(letters[place, chosen[:, place]] for place in range(chosen.shape[1])))
    ink = np.concatenate(templates).clip(0, 1)
    centred = ink - ink.mean(axis=1, keepdims=True)
    return ink, np.ascontiguousarray((centred / np.linalg.norm(centred, axis=1, keepdims=True)).T)


def _letter(letter: str, place: int, shift: tuple[float, float]) -> Array:
    """The ink (P,) of one letter of a word, 0 to 1; the other letters are blank."""
    word = letter.rjust(place + 1).ljust(words.WORD_LENGTH)
    image = words.write(word, ink=(0, 0, 0), background=255, shift=shift)
    return (1 - image[..., 0].ravel() / 255).astype(np.float32)
