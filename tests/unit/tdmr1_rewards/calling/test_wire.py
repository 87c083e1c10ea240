"""What goes over the wire comes back bit for bit, and what does not belong on it is refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from support.reward_batches import make_batch

from tdmr1_rewards.api import RewardBatch, RewardContext, RewardResult
from tdmr1_rewards.calling import wire
from tdmr1_rewards.calling.wire import decode_batch, decode_result, encode_batch, encode_result, plain
from tdmr1_rewards.errors import Tdmr1Error

pytestmark = pytest.mark.unit

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
metadata = st.dictionaries(st.text(), values, max_size=3)
words = st.text(st.characters(codec=None), max_size=20)  # lone surrogates too


@st.composite
def batches(draw):
    count, height, width = draw(st.integers(0, 4)), draw(st.integers(1, 9)), draw(st.integers(1, 9))

    def each(strategy):
        return draw(st.lists(strategy, min_size=count, max_size=count))

    folder = draw(st.none() | st.just(Path("runs/ü")))
    return RewardBatch(
        images=draw(arrays(np.uint8, (count, height, width, 3))),
        prompts=each(words),
        metadata=each(metadata),
        group_ids=each(st.integers(-3, 10**12)),
        image_ids=each(st.integers(0, 10**12)),
        context=RewardContext(folder, draw(st.integers(0, 10**9)), draw(st.integers(0, 2**63))),
    )


def through_json(document):
    return json.loads(json.dumps(document, allow_nan=False).encode("ascii"))


@given(batches())
@settings(max_examples=60, deadline=None)
def test_a_batch_comes_back_bit_for_bit(batch):
    back = decode_batch(through_json(encode_batch(batch)), "array")
    if len(batch):
        assert back.images.dtype == np.uint8
        assert np.array_equal(back.images, batch.images)
    assert len(back) == len(batch)
    assert (list(back.prompts), list(back.metadata)) == (list(batch.prompts), list(batch.metadata))
    assert (list(back.group_ids), list(back.image_ids)) == (list(batch.group_ids), list(batch.image_ids))
    assert back.context == batch.context


@given(st.lists(st.none() | st.floats(allow_nan=False, allow_infinity=False), max_size=5), st.data())
@settings(max_examples=60, deadline=None)
def test_a_result_comes_back_with_its_nones(scores, data):
    details = data.draw(st.none() | st.lists(metadata, min_size=len(scores), max_size=len(scores)))
    back = decode_result(through_json(encode_result(RewardResult(scores, details))))
    assert (back.scores, back.details) == (scores, details)


def test_pil_images_of_any_size_and_mode():
    images = [Image.new("RGB", (3, 2), "red"), Image.new("L", (5, 1), 7)]
    back = decode_batch(through_json(encode_batch(replace(make_batch("a", "b"), images=images))), "pil")
    assert [(image.mode, image.size) for image in back.images] == [("RGB", (3, 2)), ("RGB", (5, 1))]
    assert [image.getpixel((0, 0)) for image in back.images] == [(255, 0, 0), (7, 7, 7)]


def test_plain_values():
    told = {1: (np.float32(0.5), np.arange(2)), "p": Path("a"), "n": float("nan"), "s": {3}, "b": np.bool_(True)}
    assert plain(told) == {"1": [0.5, [0, 1]], "p": "a", "n": "nan", "s": [3], "b": True}


def changed(**fields):
    return through_json(encode_batch(make_batch("a", "b"))) | fields


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ([], "the batch is a list, not an object"),
        ({}, "context is a NoneType, not an object"),
        (changed(context={"iteration": 1.5, "seed": 0}), "iteration is a float, not a whole number"),
        (changed(images=None), "images is missing, not a list"),
        (changed(images="abc"), "images is a str, not a list"),
        (changed(images=["%%%", ""]), "images[0] is no PNG picture in base64"),
        (changed(images=["iVBORw0KGgo=", ""]), "images[0] is no PNG picture in base64"),
        (changed(prompts=["a", 1]), "prompts[1] is a int"),
        (changed(metadata=[{}, []]), "metadata[1] is a list"),
        (changed(group_ids=[0, True]), "group_ids[1] is a bool"),
        (changed(image_ids=[0]), "needs as many of each"),
    ],
)
def test_what_is_no_batch_is_told(document, told):
    with pytest.raises(Tdmr1Error) as caught:
        decode_batch(document, "array")
    assert told in caught.value.message


def test_pictures_of_two_sizes_are_no_array():
    images = [wire.encode_image(np.zeros((2, width, 3), np.uint8)) for width in (3, 4)]
    with pytest.raises(Tdmr1Error, match="different sizes: 3 x 2 and 4 x 2"):
        decode_batch(changed(images=images), "array")


def test_a_picture_that_would_unpack_to_too_much_is_refused(monkeypatch):
    monkeypatch.setattr(wire, "MAX_PIXELS", 19)
    with pytest.raises(Tdmr1Error, match=r"images\[0\] has 5 x 4 pixels, more than 19"):
        decode_batch(changed(), "array")


def test_other_formats_than_png_are_not_opened(tmp_path):
    import base64

    Image.new("RGB", (2, 2)).save(tmp_path / "a.bmp")
    text = base64.b64encode((tmp_path / "a.bmp").read_bytes()).decode()
    with pytest.raises(Tdmr1Error, match="is no PNG picture"):
        decode_batch(changed(images=[text, text]), "pil")


@pytest.mark.parametrize("document", [None, {}, {"scores": 1.0}])
def test_what_is_no_result_is_told(document):
    with pytest.raises(Tdmr1Error, match="not"):
        decode_result(document)
