"""The world of words: images show the word, and captions are misspelt at the configured rate."""

from __future__ import annotations

import numpy as np
import pytest

from tdmr1_core.tiny.words import (
    HEIGHT,
    LETTERS,
    WIDTH,
    SpellingNoise,
    WordCaption,
    caption,
    make_dataset,
    render,
    training_captions,
    word_captions,
)

pytestmark = pytest.mark.unit


def test_a_data_set_is_a_function_of_its_seed():
    one, other = (make_dataset(20, 3, SpellingNoise()) for _ in range(2))
    assert np.array_equal(one[0], other[0])
    assert one[1:] == other[1:]
    assert not np.array_equal(one[0], make_dataset(20, 4, SpellingNoise())[0])


def test_dark_letters_on_a_light_background():
    rng = np.random.default_rng(0)
    for word in ("TEN", "TAX", "KLU"):
        image = render(word, rng)
        assert image.shape == (HEIGHT, WIDTH, 3)
        border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
        assert border.min() > 150
        dark = (image.max(axis=2) < 128).any(axis=0)
        columns = np.flatnonzero(dark)
        assert columns[0] < 9  # three letters over the whole width
        assert columns[-1] > 26


def test_images_of_two_words_differ_at_the_different_letter():
    rng = np.random.default_rng(1)
    written = {word: np.mean([render(word, rng).mean(axis=2) for _ in range(20)], axis=0) for word in ("TEN", "TAN")}
    difference = np.abs(written["TEN"] - written["TAN"]).mean(axis=0)
    assert difference[14:22].mean() > 3 * max(difference[:10].mean(), difference[26:].mean())


def test_captions_are_misspelt_at_the_configured_rate():
    rng = np.random.default_rng(2)
    words = [entry.word for entry in training_captions()]
    for rate in (0.0, 0.4):
        drawn = [(word, caption(word, rng, SpellingNoise(rate)).word) for word in words * 4]
        wrong = np.mean([a != b for word, text in drawn for a, b in zip(word, text, strict=True)])
        assert wrong == pytest.approx(rate, abs=0.0 if rate == 0 else 0.03)


def test_held_out_words_are_never_in_a_caption():
    known = {entry.text for entry in training_captions()}
    assert set(make_dataset(200, 5, SpellingNoise())[1]) <= known
    held_out = word_captions(held_out=True)
    assert not known & {entry.text for entry in held_out}
    assert len(held_out) == len(LETTERS) ** 3 // 4
    for place in range(3):  # training has every letter at every position
        assert {entry.word[place] for entry in training_captions()} == set(LETTERS)


def test_text_and_metadata():
    assert WordCaption("NET").text == 'a sign "NET"'
    assert WordCaption("NET").metadata == {"tag": "text", "text": "NET", "prompt": 'a sign "NET"'}
