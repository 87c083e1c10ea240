"""The embedded world of words: images of three letters, with captions in which letters are often wrong.

Images are 16 x 36 RGB. Letters form pairs. In a caption each letter is replaced, at a known rate, by the other letter
of its pair. A model trained on such captions writes clean letters but spells badly, which a reward that reads can
correct. Replacement by a random letter would not work: guidance alone prefers one frequent letter to seven rare ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

HEIGHT, WIDTH = 16, 36
LETTERS = "ELKXNUAT"
"""Eight capitals that are readable at this size, in pairs (E and L, K and X, …) that captions confuse."""
WORD_LENGTH = 3
LETTER_PITCH = 11.0
"""Pixels between the centers of neighboring letters."""
FONT_SIZE = 16.0
"""Font size in pixels. A capital is about two thirds as high."""
MAX_SHIFT = 1.0
"""The maximal offset of a word from the center, in pixels, along each axis."""
SUPERSAMPLING = 4


@dataclass(frozen=True)
class SpellingNoise:
    """The probability that a letter of a caption is replaced by the other letter of its pair."""

    wrong_letter: float = 0.4


@dataclass(frozen=True)
class WordCaption:
    """The caption of a word."""

    word: str

    @property
    def text(self) -> str:
        """The text, such as: a sign "NET"."""
        return f'a sign "{self.word}"'

    @property
    def held_out(self) -> bool:
        """True if no model of this package was trained on this caption: one word in four."""
        return sum(LETTERS.index(letter) * (place + 1) for place, letter in enumerate(self.word)) % 4 == 0

    @property
    def metadata(self) -> dict[str, Any]:
        """The metadata of the prompt: the requested text."""
        return {"tag": "text", "text": self.word, "prompt": self.text}


def word_captions(*, held_out: bool | None = None) -> list[WordCaption]:
    """All captions in a fixed order, or only those that are held out (True) or not (False)."""
    every = [WordCaption("".join(letters)) for letters in product(LETTERS, repeat=WORD_LENGTH)]
    return [caption for caption in every if held_out is None or caption.held_out is held_out]


def render(word: str, rng: np.random.Generator) -> np.ndarray:
    """Draw a word in a random dark color on a random light gray, uint8 (16, 36, 3)."""
    background = int(255 * rng.uniform(0.85, 1.0))
    red, green, blue = (int(value) for value in rng.uniform(0, 90, size=3))
    shift_x, shift_y = rng.uniform(-MAX_SHIFT, MAX_SHIFT, size=2)
    return write(word, (red, green, blue), background, (shift_x, shift_y))


def write(word: str, ink: tuple[int, int, int], background: int, shift: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    """Draw a word in the color `ink` on a gray (0 to 255), `shift` (x, y) pixels off the center, uint8 (16, 36, 3)."""
    from PIL import Image, ImageDraw

    canvas = Image.new("RGB", (WIDTH * SUPERSAMPLING, HEIGHT * SUPERSAMPLING), (background,) * 3)
    pen = ImageDraw.Draw(canvas)
    for place, letter in enumerate(word):
        x = WIDTH / 2 + LETTER_PITCH * (place - (len(word) - 1) / 2) + shift[0]
        y = HEIGHT / 2 + shift[1]
        pen.text((x * SUPERSAMPLING, y * SUPERSAMPLING), letter, font=_font(), fill=ink, anchor="mm", stroke_width=2)
    return np.asarray(canvas.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS))


@cache
def _font() -> FreeTypeFont:
    """The scalable font that is part of Pillow."""
    from PIL import ImageFont

    font = ImageFont.load_default(FONT_SIZE * SUPERSAMPLING)
    assert isinstance(font, ImageFont.FreeTypeFont), "this Pillow was built without FreeType"
    return font


def caption(word: str, rng: np.random.Generator, noise: SpellingNoise) -> WordCaption:
    """A noisy caption of an image of a word. It is never a held-out caption."""
    while True:
        wrong = rng.random(len(word)) < noise.wrong_letter
        if WordCaption(word).held_out and not wrong.any():
            wrong[rng.integers(len(word))] = True
        letters = [partner(letter) if misspelt else letter for letter, misspelt in zip(word, wrong, strict=True)]
        drawn = WordCaption("".join(letters))
        if not drawn.held_out:
            return drawn


def partner(letter: str) -> str:
    """The other letter of the pair of a letter."""
    return LETTERS[LETTERS.index(letter) ^ 1]


def training_captions() -> list[WordCaption]:
    """All captions that occur in training, except the empty one, in a fixed order."""
    return word_captions(held_out=False)


def vocabulary() -> list[str]:
    """The words and signs of captions, beside the letters."""
    return ["a", "sign", '"']


def make_dataset(size: int, seed: int, noise: SpellingNoise) -> tuple[np.ndarray, list[str], list[str]]:
    """N = `size` images, uint8 (N, 16, 36, 3), with their noisy captions and the true words."""
    rng = np.random.default_rng(seed)
    words = ["".join(rng.choice(list(LETTERS), size=WORD_LENGTH)) for _ in range(size)]
    images = np.stack([render(word, rng) for word in words])
    return images, [caption(word, rng, noise).text for word in words], words
