"""The judge of words reads what the world writes, wherever it stands, and notices what damage did to it."""

from __future__ import annotations

import numpy as np
import pytest
import word_judge

from tdmr1_core.tiny import words

pytestmark = pytest.mark.unit

GROUPS = np.zeros(1, int)


def written(word: str, ink: tuple[int, int, int] = (0, 0, 0), ground: int = 255, **options) -> np.ndarray:
    return words.write(word, ink, ground, **options)[None]


def judged(image: np.ndarray, asked: str) -> dict[str, float]:
    return {name: values[0] for name, values in word_judge.judge_words(image, [asked], GROUPS).items()}


def test_what_the_world_writes_is_read():
    images, _, asked = words.make_dataset(200, 3, words.SpellingNoise())
    measures = word_judge.judge_words(images, asked, np.arange(200))
    assert np.mean(measures["nearest_exact"]) == 1
    assert min(measures["likeness"]) > 0.9


@pytest.mark.parametrize("shift", [(-2.0, 0.0), (1.5, -1.5), (0.3, 0.7)])
def test_a_shifted_word_is_the_same_word(shift):
    measures = judged(written("TEX", shift=shift), "TEX")
    assert (measures["nearest_exact"], measures["nearest_letters"]) == (1, 1)


def test_a_wrong_letter_is_one_in_three():
    measures = judged(written("TAX"), "TEX")
    assert measures["nearest_exact"] == 0
    assert measures["nearest_letters"] == pytest.approx(2 / 3)


def test_pale_ink_is_read_and_told():
    strong, pale = (judged(written("NUL", ink=(ink,) * 3, ground=230), "NUL") for ink in (20, 200))
    assert pale["nearest_exact"] == 1
    assert strong["contrast"] > 0.6 > 0.15 > pale["contrast"]
    assert pale["likeness"] == pytest.approx(strong["likeness"], abs=0.02)


def test_noise_and_a_fourth_letter_lower_the_likeness():
    clean = written("KEN")
    noisy = (clean + np.random.default_rng(0).normal(0, 60, clean.shape)).clip(0, 255).astype(np.uint8)
    crowded = np.minimum(clean, np.roll(written("KLX"), 5, axis=2))
    whole = judged(clean, "KEN")
    assert whole["likeness"] == pytest.approx(1, abs=1e-4)
    assert judged(noisy, "KEN")["likeness"] < 0.97
    assert judged(noisy, "KEN")["background_noise"] > 3 * whole["background_noise"] + 0.05
    assert judged(crowded, "KEN")["likeness"] < 0.9


def test_an_empty_picture_is_like_nothing():
    measures = judged(np.full((1, words.HEIGHT, words.WIDTH, 3), 240, np.uint8), "KEN")
    assert (measures["likeness"], measures["contrast"]) == pytest.approx((0, 0), abs=1e-5)


def test_pictures_of_another_size_are_refused():
    with pytest.raises(ValueError, match="expected uint8"):
        word_judge.read(np.zeros((1, 24, 24, 3), np.uint8))
