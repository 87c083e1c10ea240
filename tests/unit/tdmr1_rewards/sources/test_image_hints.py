"""The hint for a foreign reward that wants its images in another form."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import ImageChops, ImageStat
from support.errors import raises
from support.reward_batches import active, batch_of

from tdmr1_rewards.calling.user_code import attached_hint
from tdmr1_rewards.scoring.runner import RewardRunner
from tdmr1_rewards.sources.foreign import adapt

pytestmark = pytest.mark.unit

BATCH = batch_of(np.zeros((2, 8, 8, 3), np.uint8), ["a", "b"])


def hint_for(function, form, *, one_by_one=False):
    """The hint that is attached to the exception of a function of images, or of one image."""

    def all_images(images, prompts):
        return function(images)

    def one_image(image, prompt):
        return function(image)

    with pytest.raises(Exception) as caught:
        adapt(one_image if one_by_one else all_images, {"image_format": form})(BATCH)
    return attached_hint(caught.value)


@pytest.mark.parametrize(
    ("form", "function", "wanted"),
    [
        ("tensor", lambda images: [image.convert("L") for image in images], "pil"),
        ("tensor", lambda images: [image.size[0] for image in images], "pil"),
        ("tensor", lambda images: [width for width, height in [image.size for image in images]], "pil"),
        ("tensor", lambda images: [image.resize((1, 1)) for image in images], "pil"),
        ("tensor", lambda images: [ImageStat.Stat(image) for image in images], "pil"),
        ("tensor", lambda images: [ImageChops.difference(image, image) for image in images], "pil"),
        ("tensor", lambda images: images.astype("float32"), "array"),
        ("array", lambda images: [image.convert("L") for image in images], "pil"),
        ("array", lambda images: images.permute(0, 3, 1, 2), "tensor"),
        ("pil", lambda images: images.permute(0, 3, 1, 2), "tensor"),
        ("pil", lambda images: images / 255, "tensor"),
        ("pil", lambda images: images[:, 0], "tensor"),
        ("pil", lambda images: [image.astype(int) for image in images], "array"),
    ],
)
def test_the_hint_names_the_form_and_the_option_that_changes_it(form, function, wanted):
    pytest.importorskip("torch")
    hint = hint_for(function, form)
    given = {
        "tensor": "a float tensor (N, 3, H, W) in [0, 1]",
        "array": "a uint8 array (N, H, W, 3)",
        "pil": "PIL images",
    }
    assert hint.startswith(f"the images were given as {given[form]}; ")
    assert re.search(r"`--option image_format=(\w+)`", hint)[1] == wanted
    assert f"`rewards.N.options.image_format: {wanted}`" in hint


def test_the_hint_for_one_image_at_a_time():
    hint = hint_for(lambda image: image.mean(), "pil", one_by_one=True)
    assert hint.startswith("the images were given as a PIL image; ")


@pytest.mark.parametrize("form", ["tensor", "array", "pil"])
@pytest.mark.parametrize(
    "function",
    [
        lambda _: {}["a"],
        lambda _: None.convert,
        lambda _: "a".convert,
        lambda _: [1].convert,
        lambda _: 1 + "a",
        lambda _: int("a"),
        lambda _: 1 / 0,
        lambda _: Path("/no/such/file").read_text(),
        lambda _: (lambda argument: argument)(),
        lambda _: np.zeros(3) + np.zeros(4),
    ],
)
def test_another_exception_has_no_such_hint(function, form):
    pytest.importorskip("torch")
    assert hint_for(function, form) is None


def test_the_hint_reaches_the_error_in_a_run_and_outside():
    def score(images, prompts):
        return [image.convert("L") for image in images]

    reward = adapt(score, {"image_format": "array"})
    for settings, named in (({}, True), ({"on_failure": "skip"}, False), ({"in_run": False}, False)):
        entry = active(reward, **settings)
        with RewardRunner([entry], "weighted_sum", 1) as runner:
            if settings.get("on_failure"):
                with pytest.warns(UserWarning, match="convert"), raises("reward-failed", reward="x") as caught:
                    runner.score(BATCH)
            else:
                with raises("reward-failed", reward="x") as caught:
                    runner.score(BATCH)
        assert "image_format=pil" in caught.value.hint
        assert ("on_failure" in caught.value.hint) is named
        assert caught.value.values["file"].endswith("test_image_hints.py")
