"""Measures of the pictures of words that no reward pays for: the nearest word as the world itself would write it.

A picture is compared with all 512 words at many places, by the correlation of its darkness with theirs, so that neither
shade nor contrast decide. It shares nothing with an engine that reads, so that what fools the one need not fool this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
from judge import pixel_distance
from numpy.typing import NDArray

from tdmr1_core.tiny import words

Array = NDArray[np.float32]

SHIFTS = np.arange(-2.0, 2.01, 0.5)
"""Where a word may lie off the middle, in pixels along each axis; the world's own lie up to 1 off."""
INK, CLEAR = 0.6, 0.02
"""From how much of a template's ink on a pixel counts as ink, and up to how much as background (0 to 1)."""
CHUNK = 64
"""Pictures compared at once; a matter of memory and speed only."""


@dataclass(frozen=True)
class Reading:
    """The word that a picture is most like, and how much: the correlation, -1 to 1, where 1 is the world's own."""

    word: str
    likeness: float
    contrast: float
    background_noise: float


def read(images: np.ndarray) -> list[Reading]:
    """The nearest word to each of the pictures uint8 (N, 16, 36, 3)."""
    if images.dtype != np.uint8 or images.shape[1:] != (words.HEIGHT, words.WIDTH, 3):
        raise ValueError(f"expected uint8 (N, {words.HEIGHT}, {words.WIDTH}, 3), got {images.dtype} {images.shape}")
    light = images.reshape(len(images), -1, 3).mean(axis=2).astype(np.float32) / np.float32(255)
    return [reading for start in range(0, len(light), CHUNK) for reading in _read_chunk(light[start : start + CHUNK])]


def judge_words(images: np.ndarray, asked: Sequence[str], group_ids: np.ndarray) -> dict[str, list[float]]:
    """Measure pictures uint8 (N, 16, 36, 3) against the words asked for; `pixel_distance` has one value a group.

    - `nearest_exact`: 1 if the nearest word is the one asked for, else 0
    - `nearest_letters`: share of its letters that are as asked, 0 to 1
    - `likeness`: correlation with the nearest word, -1 to 1
    - `contrast`: mean light of the background less that of the ink, -1 to 1
    - `background_noise`: standard deviation of the background, 0 to 0.5 (white is 1)
    - `pixel_distance`: how much pictures of one prompt differ, 0 to 1
    """
    readings = read(images)
    pairs = list(zip(readings, asked, strict=True))
    letters = [np.mean([a == b for a, b in zip(reading.word, word, strict=True)]) for reading, word in pairs]
    return {
        "nearest_exact": [float(reading.word == word) for reading, word in pairs],
        "nearest_letters": [float(share) for share in letters],
        "likeness": [reading.likeness for reading in readings],
        "contrast": [reading.contrast for reading in readings],
        "background_noise": [reading.background_noise for reading in readings],
        "pixel_distance": [pixel_distance(images[group_ids == group]) for group in np.unique(group_ids)],
    }


def _read_chunk(light: Array) -> list[Reading]:
    ink, normed = _templates()
    dark = light.mean(axis=1, keepdims=True) - light
    dark /= np.maximum(np.linalg.norm(dark, axis=1, keepdims=True), 1e-6)
    likeness = dark @ normed
    best = likeness.argmax(axis=1)
    return [_explain(*parts) for parts in zip(light, ink[best], best, likeness.max(axis=1), strict=True)]


def _explain(light: Array, ink: Array, template: int, likeness: float) -> Reading:
    ground = light[ink <= CLEAR]
    contrast = float(ground.mean() - light[ink >= INK].mean())
    return Reading(_words()[template % len(_words())], float(likeness), contrast, float(ground.std()))


@cache
def _words() -> list[str]:
    return [caption.word for caption in words.word_captions()]


@cache
def _templates() -> tuple[Array, Array]:
    """Ink of every word at every shift, shift by shift (M, P), 0 to 1; and without its mean, of length 1 (P, M)."""
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
    """One letter of a word at its place, the others left blank: ink (P,), 0 to 1."""
    word = letter.rjust(place + 1).ljust(words.WORD_LENGTH)
    picture = words.write(word, ink=(0, 0, 0), background=255, shift=shift)
    return (1 - picture[..., 0].ravel() / 255).astype(np.float32)
