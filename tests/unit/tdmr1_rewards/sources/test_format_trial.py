"""The test of the image format of functions that do not declare one."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from support.errors import raises
from support.reward_batches import active, make_batch

from tdmr1_rewards.errors import RewardNote
from tdmr1_rewards.scoring.runner import RewardRunner
from tdmr1_rewards.sources.foreign import adapt

pytestmark = pytest.mark.unit


def chosen(function, **options):
    """The format that `function` receives, and what the test found."""
    reward = adapt(function, options)
    reward.setup("cpu")
    return reward.image_form, reward.form_reason


def only_pil(images, prompts):
    return [image.getpixel((0, 0))[0] for image in images]


def only_array(images):
    return images.astype(np.float32).mean((1, 2, 3))


def only_tensor(images, prompts):
    return images.permute(0, 2, 3, 1).mean((1, 2, 3))


def each(images, prompts):
    """Accepts all formats, like a scorer that converts them."""
    if isinstance(images, torch.Tensor):
        return images.mean((1, 2, 3)) * 255
    return [float(np.asarray(image).mean()) for image in images]


def none_for_some(images, prompts):
    return [None if "OPEN" in prompt else score for prompt, score in zip(prompts, each(images, prompts), strict=True)]


async def asynchronous(images, prompts):
    return only_pil(images, prompts)


class OneSwallows:
    """Answers 0 in a format that it does not know, like an OCR scorer that catches its own exceptions."""

    def __call__(self, images, prompts):
        return [image.getpixel((0, 0))[0] if isinstance(image, Image.Image) else 0.0 for image in images]


def rescales(images, prompts):
    """Divides by 255, as the processor of CLIP does, also where that has been done."""
    return [float(np.asarray(image, dtype=np.float32).mean()) / 255 for image in images]


@pytest.mark.parametrize(
    ("function", "form", "reason"),
    [
        (only_pil, "pil", "the only format that works"),
        (only_array, "array", "the only format that works"),
        (only_tensor, "tensor", "the only format that works"),
        (asynchronous, "pil", "the only format that works"),
        (each, "tensor", "the same scores in tensor, pil and array"),
        (none_for_some, "tensor", "the same scores in tensor, pil and array"),
        (lambda images: [0.5] * len(images), "tensor", "all sample images score 0.5 in tensor, pil and array; check"),
    ],
)
def test_a_format_that_the_scores_decide(function, form, reason):
    found, why = chosen(function)
    assert found == form
    assert reason in why


@pytest.mark.parametrize("function", [OneSwallows(), rescales, lambda images: images.mean((1, 2, 3))])
def test_formats_with_different_scores_are_refused(function):
    reward = adapt(function, owner="mine")
    for call in (lambda: reward.setup("cpu"), lambda: reward(make_batch("first", "second"))):
        with raises("reward-images", reward="mine") as caught:
            call()
        assert "the formats give different scores" in caught.value.message
        assert "`image_format`" in caught.value.hint
        assert sorted(caught.value.values["outcomes"]) == ["array", "pil", "tensor"]
    for form in ("tensor", "pil", "array"):
        assert chosen(function, image_format=form)[0] == form


def test_random_scores_are_refused():
    counter = itertools.count()
    with raises("reward-images") as caught:
        chosen(lambda images: [float(next(counter)) for _ in images])
    assert "change from call to call" in caught.value.message


def test_a_function_that_fails_in_every_format_is_refused_with_its_error():
    def fails(images, prompts):
        raise RuntimeError("no key")

    with raises("reward-images") as caught:
        chosen(fails)
    assert caught.value.message.count("RuntimeError: no key") == 1
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.parametrize("answer", [[1.0], [float("nan")] * 8, ["a"] * 8])
def test_an_answer_without_a_score_for_each_image_does_not_count(answer):
    def score(images, prompts):
        return answer if isinstance(images, torch.Tensor) else only_pil(images, prompts)

    assert chosen(score)[0] == "pil"


def test_the_format_is_tested_once():
    calls = []

    def score(images, prompts):
        calls.append(type(images))
        return each(images, prompts)

    reward = adapt(score)
    reward.setup("cpu")
    tested = len(calls)
    reward(make_batch("first", "second"))
    reward(make_batch("first", "second"))
    assert (tested, len(calls)) == (4, 6)  # one call in each format, and one more to see that scores do not change
    assert adapt(score, {"image_format": "pil"})(make_batch("first", "second")).scores is not None
    assert len(calls) == 7


def make_scorer(device):
    return lambda images, prompts, metadata: images.mean((1, 2, 3))


class Declared:
    def __call__(self, images: torch.Tensor, prompts):
        return images.mean((1, 2, 3))


@pytest.mark.parametrize(
    ("target", "note"),
    [
        (only_pil, "receives PIL images, by a test (the only format that works with sample images)"),
        (make_scorer, "receives a float tensor (N, 3, H, W) in [0, 1]"),
        (lambda: only_pil, "receives PIL images, by a test"),
        (Declared, None),
        (Declared(), None),
        (lambda prompt, image: 0.5, None),
    ],
)
def test_a_note_has_the_format_that_was_not_known_before_the_set_up(target, note):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        with RewardRunner([active(adapt(target))], "weighted_sum", 1) as runner:
            runner.set_up()
    notes = [str(each.message) for each in found if isinstance(each.message, RewardNote)]
    assert len(notes) == (note is not None)
    assert note is None or note in notes[0]


def test_rounding_errors_are_no_difference():
    def score(images, prompts):
        noise = 1e-5 if isinstance(images, torch.Tensor) else 0.0
        return [value + noise for value in each(images, prompts)]

    assert chosen(score)[0] == "tensor"
