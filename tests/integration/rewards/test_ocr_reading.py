"""rapidocr reads rendered words of several kinds; a wrong word scores lower than the right one."""

from __future__ import annotations

from collections import defaultdict

import pytest
from support.rendered_words import KINDS, WORDS, rendered_words

from tdmr1_rewards.api import RewardBatch, RewardContext
from tdmr1_rewards.builtin.example_images import draw_text, shop_signs
from tdmr1_rewards.builtin.ocr_match import OcrMatch, OcrMatchOptions

pytestmark = pytest.mark.integration

FLOORS = {"clean": 10, "noisy": 9, "rotated": 9, "low contrast": 9, "blurred": 9, "inverted": 10}
"""For each kind, the smallest number of the ten words that must be read correctly."""


def read(images, texts, **options):
    reward = OcrMatch(OcrMatchOptions(engine="rapidocr", threads=1, **options))
    reward.setup("cpu")
    count = len(images)
    prompts = [f'a sign that says "{text}"' for text in texts]
    return reward(RewardBatch(images, prompts, [{}] * count, [0] * count, range(count), RewardContext(None, 0, 0)))


@pytest.fixture(scope="module")
def scored():
    rendered = list(rendered_words())
    return rendered, read([item.image for item in rendered], [item.text for item in rendered])


def test_words_of_every_kind_are_read(scored, record_property):
    rendered, result = scored
    right = defaultdict(int)
    for item, score in zip(rendered, result.scores, strict=True):
        right[item.kind] += score == 1.0
    summary = ", ".join(f"{kind} {right[kind]}/{len(WORDS)}" for kind in KINDS)
    record_property("read_right", summary)
    print(f"rapidocr read correctly: {summary}")
    assert {kind: right[kind] >= floor for kind, floor in FLOORS.items()} == dict.fromkeys(KINDS, True), summary


def test_another_word_scores_lower_than_the_right_one(scored):
    rendered, result = scored
    clean = [(item, details) for item, details in zip(rendered, result.details, strict=True) if item.kind == "clean"]
    wrong = read([item.image for item, _ in clean], [*WORDS[1:], WORDS[0]])
    assert max(wrong.scores) <= 0.5
    assert [each["read"] for each in wrong.details] == [details["read"] for _, details in clean]
    assert {each["engine"] for each in wrong.details} == {"rapidocr"}


def test_an_image_without_text_scores_0():
    assert read([draw_text("")], ["Open"]).scores == [0.0]
    assert read([draw_text("")], ["Open"], detect=False).scores == [0.0]


def test_good_examples_score_1_and_bad_ones_at_most_half():
    examples = shop_signs()
    texts = [example.prompt.split('"')[1] for example in examples]
    scores = read([example.image for example in examples], texts).scores
    assert min(s for s, e in zip(scores, examples, strict=True) if e.good) == 1.0
    assert max(s for s, e in zip(scores, examples, strict=True) if not e.good) <= 0.5


def test_one_line_of_a_tiny_image_is_read_without_detection():
    """Images of 80 x 24 pixels, as a tiny model draws them, are enlarged; the crop excludes the line below."""
    words = ["OPEN", "STOP", "TAXI", "MILK"]
    tiny = [draw_text(word).crop((48, 40, 208, 88)).resize((80, 24)) for word in words]
    assert read(tiny, words, detect=False, upscale=2).scores == [1.0] * 4
    tall = [image.resize((80, 48)) for image in tiny]
    for image, below, above in zip(tall, ["EXIT"] * 4, tiny, strict=True):
        image.paste(above, (0, 0))
        image.paste(draw_text(below).crop((48, 40, 208, 88)).resize((80, 24)), (0, 24))
    assert read(tall, words, detect=False, upscale=2, crop=(0, 0, 1, 0.5)).scores == [1.0] * 4
    assert read(tall, words, detect=False, upscale=2, crop=(0, 0.5, 1, 1)).scores != [1.0] * 4
