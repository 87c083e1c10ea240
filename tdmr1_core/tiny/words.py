"""The embedded world of words: three letters on a plain background, with captions whose letters are often wrong.

Images are 16 x 36 RGB. Each letter of a caption is at a known rate the one it is mistaken for, so that a model trained
on them writes clean letters and spells badly: something for a reward that can read to mend. Any other letter instead
would not do: guidance alone tells a frequent letter from seven rare ones.
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
"""Eight capitals that a reader tells apart at this size; captions mistake those of a pair, E and L, for each other."""
WORD_LENGTH = 3
LETTER_PITCH = 11.0
"""Pixels from one letter's middle to the next."""
FONT_SIZE = 16.0
"""Pixels of an em; a capital is about two thirds of it."""
MAX_SHIFT = 1.0
"""Most pixels that a word lies off the middle, in both directions."""
SUPERSAMPLING = 4


@dataclass(frozen=True)
class SpellingNoise:
    """How often a letter of a caption is not the one in the picture but the other of its pair, as a probability."""

    wrong_letter: float = 0.4


@dataclass(frozen=True)
class WordCaption:
    """A caption that asks for a word."""

    word: str

    @property
    def text(self) -> str:
        """The words, such as: a sign "NET"."""
        return f'a sign "{self.word}"'

    @property
    def held_out(self) -> bool:
        """Whether no model of this package was ever trained on this caption: one word in four."""
        return sum(LETTERS.index(letter) * (place + 1) for place, letter in enumerate(self.word)) % 4 == 0

    @property
    def metadata(self) -> dict[str, Any]:
        """What a prompt set holds for the prompt: the text that is to be read."""
        return {"tag": "text", "text": self.word, "prompt": self.text}


def word_captions(*, held_out: bool | None = None) -> list[WordCaption]:
    """Every caption in a fixed order; only those held out or not, on request."""
    every = [WordCaption("".join(letters)) for letters in product(LETTERS, repeat=WORD_LENGTH)]
    return [caption for caption in every if held_out is None or caption.held_out is held_out]


def render(word: str, rng: np.random.Generator) -> np.ndarray:
    """Write a word in a dark ink of random shade on a light grey: uint8 (16, 36, 3)."""
    background = int(255 * rng.uniform(0.85, 1.0))
    red, green, blue = (int(value) for value in rng.uniform(0, 90, size=3))
    shift_x, shift_y = rng.uniform(-MAX_SHIFT, MAX_SHIFT, size=2)
    return write(word, (red, green, blue), background, (shift_x, shift_y))


def write(word: str, ink: tuple[int, int, int], background: int, shift: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    """Write a word in an ink on a grey (0 to 255), `shift` (x, y) pixels off the middle: uint8 (16, 36, 3)."""
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
    """Pillow's own scalable font, so that none must be installed."""
    from PIL import ImageFont

    font = ImageFont.load_default(FONT_SIZE * SUPERSAMPLING)
    assert isinstance(font, ImageFont.FreeTypeFont), "this Pillow was built without FreeType"
    return font


def caption(word: str, rng: np.random.Generator, noise: SpellingNoise) -> WordCaption:
    """A noisy caption of a picture of a word; for a word that is held out, at least one letter is wrong."""
    while True:
        wrong = rng.random(len(word)) < noise.wrong_letter
        if WordCaption(word).held_out and not wrong.any():
            wrong[rng.integers(len(word))] = True
        letters = [mistaken(letter) if misspelt else letter for letter, misspelt in zip(word, wrong, strict=True)]
        drawn = WordCaption("".join(letters))
        if not drawn.held_out:
            return drawn


def mistaken(letter: str) -> str:
    """The letter that captions write for this one where they are wrong."""
    return LETTERS[LETTERS.index(letter) ^ 1]


def training_captions() -> list[WordCaption]:
    """Every caption that training can meet but the empty one, in a fixed order."""
    return word_captions(held_out=False)


def vocabulary() -> list[str]:
    """Every word and sign that a caption can hold beside the letters."""
    return ["a", "sign", '"']


def make_dataset(size: int, seed: int, noise: SpellingNoise) -> tuple[np.ndarray, list[str], list[str]]:
    """`size` pictures uint8 (N, 16, 36, 3), their noisy captions and the words themselves."""
    rng = np.random.default_rng(seed)
    words = ["".join(rng.choice(list(LETTERS), size=WORD_LENGTH)) for _ in range(size)]
    images = np.stack([render(word, rng) for word in words])
    return images, [caption(word, rng, noise).text for word in words], words
