"""Word metrics: they read words at any position, and change when a word is damaged."""

from __future__ import annotations

import numpy as np
import pytest
import word_metrics

from tdmr1_core.tiny import words

pytestmark = pytest.mark.unit

GROUPS = np.zeros(1, int)


def written(word: str, ink: tuple[int, int, int] = (0, 0, 0), background: int = 255, **options) -> np.ndarray:
    return words.write(word, ink, background, **options)[None]


def measured(image: np.ndarray, requested: str) -> dict[str, float]:
    return {name: values[0] for name, values in word_metrics.measure_words(image, [requested], GROUPS).items()}


def test_words_of_the_world_are_read():
    images, _, requested = words.make_dataset(200, 3, words.SpellingNoise())
    measures = word_metrics.measure_words(images, requested, np.arange(200))
    assert np.mean(measures["nearest_exact"]) == 1
    assert min(measures["likeness"]) > 0.9


@pytest.mark.parametrize("shift", [(-2.0, 0.0), (1.5, -1.5), (0.3, 0.7)])
def test_a_shifted_word_is_read(shift):
    measures = measured(written("TEX", shift=shift), "TEX")
    assert (measures["nearest_exact"], measures["nearest_letters"]) == (1, 1)


def test_one_wrong_letter_of_three_gives_two_thirds():
    measures = measured(written("TAX"), "TEX")
    assert measures["nearest_exact"] == 0
    assert measures["nearest_letters"] == pytest.approx(2 / 3)


def test_pale_ink_is_read_and_lowers_the_contrast():
    strong, pale = (measured(written("NUL", ink=(ink,) * 3, background=230), "NUL") for ink in (20, 200))
    assert pale["nearest_exact"] == 1
    assert strong["contrast"] > 0.6 > 0.15 > pale["contrast"]
    assert pale["likeness"] == pytest.approx(strong["likeness"], abs=0.02)


def test_noise_and_a_fourth_letter_lower_the_similarity():
    clean = written("KEN")
    noisy = (clean + np.random.default_rng(0).normal(0, 60, clean.shape)).clip(0, 255).astype(np.uint8)
    crowded = np.minimum(clean, np.roll(written("KLX"), 5, axis=2))
    reference = measured(clean, "KEN")
    assert reference["likeness"] == pytest.approx(1, abs=1e-4)
    assert measured(noisy, "KEN")["likeness"] < 0.97
    assert measured(noisy, "KEN")["background_noise"] > 3 * reference["background_noise"] + 0.05
    assert measured(crowded, "KEN")["likeness"] < 0.9


def test_an_empty_image_is_similar_to_no_word():
    measures = measured(np.full((1, words.HEIGHT, words.WIDTH, 3), 240, np.uint8), "KEN")
    assert (measures["likeness"], measures["contrast"]) == pytest.approx((0, 0), abs=1e-5)


def test_images_of_another_size_are_rejected():
    with pytest.raises(ValueError, match="expected uint8"):
        word_metrics.read(np.zeros((1, 24, 24, 3), np.uint8))
