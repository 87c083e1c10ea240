"""Batches and results survive encoding and decoding bit for bit; invalid documents are rejected."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from support.errors import raises
from support.reward_batches import make_batch

from tdmr1_rewards.api import RewardBatch, RewardContext, RewardResult
from tdmr1_rewards.calling import wire
from tdmr1_rewards.calling.wire import check_token, decode_batch, decode_result, encode_batch, encode_result, plain

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
def test_a_decoded_batch_is_bit_identical(batch):
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
def test_a_decoded_result_keeps_its_nones(scores, data):
    details = data.draw(st.none() | st.lists(metadata, min_size=len(scores), max_size=len(scores)))
    back = decode_result(through_json(encode_result(RewardResult(scores, details))))
    assert (back.scores, back.details) == (scores, details)


def test_pil_images_of_any_size_and_mode():
    images = [Image.new("RGB", (3, 2), "red"), Image.new("L", (5, 1), 7)]
    back = decode_batch(through_json(encode_batch(replace(make_batch("a", "b"), images=images))), "pil")
    assert [(image.mode, image.size) for image in back.images] == [("RGB", (3, 2)), ("RGB", (5, 1))]
    assert [image.getpixel((0, 0)) for image in back.images] == [(255, 0, 0), (7, 7, 7)]


def test_values_become_plain_json_data():
    values = {1: (np.float32(0.5), np.arange(2)), "p": Path("a"), "n": float("nan"), "s": {3}, "b": np.bool_(True)}
    assert plain(values) == {"1": [0.5, [0, 1]], "p": "a", "n": "nan", "s": [3], "b": True}


def changed(**fields):
    return through_json(encode_batch(make_batch("a", "b"))) | fields


@pytest.mark.parametrize(
    ("document", "code", "values"),
    [
        ([], "server-protocol", {"field": "the batch", "found": "a list"}),
        ({}, "server-protocol", {"field": "context", "found": "missing"}),
        (changed(context={"iteration": 1.5, "seed": 0}), "server-protocol", {"field": "iteration", "found": "a float"}),
        (changed(images=None), "server-protocol", {"field": "images", "found": "missing"}),
        (changed(images="abc"), "server-protocol", {"field": "images", "found": "a str"}),
        (changed(images=["%%%", ""]), "reward-images", {"index": 0}),
        (changed(images=["iVBORw0KGgo=", ""]), "reward-images", {"index": 0}),
        (changed(prompts=["a", 1]), "server-protocol", {"field": "prompts[1]", "found": "a int"}),
        (changed(metadata=[{}, []]), "server-protocol", {"field": "metadata[1]", "found": "a list"}),
        (changed(image_ids=[0, 0.5]), "server-protocol", {"field": "image_ids[1]", "found": "a float"}),
        (changed(group_ids=[0, True]), "server-protocol", {"field": "group_ids[1]", "found": "a bool"}),
        (
            changed(image_ids=[0]),
            "reward-images",
            {"lengths": {"images": 2, "prompts": 2, "metadata": 2, "group_ids": 2, "image_ids": 1}},
        ),
    ],
)
def test_an_invalid_batch_is_rejected(document, code, values):
    with raises(code, **values):
        decode_batch(document, "array")


def test_integers_may_be_written_with_a_decimal_point():
    context = {"iteration": 3.0, "seed": 1e3, "new": 1}
    back = decode_batch(changed(group_ids=[0.0, -1.0], image_ids=[7.0, 8], context=context, new=[]), "array")
    integers = [*back.group_ids, *back.image_ids, back.context.iteration, back.context.seed]
    assert integers == [0, -1, 7, 8, 3, 1000]
    assert all(type(value) is int for value in integers)
    assert back.context.run_folder is None


def test_images_of_different_sizes_are_not_an_array():
    images = [wire.encode_image(np.zeros((2, width, 3), np.uint8)) for width in (3, 4)]
    with raises("reward-images", sizes=[[3, 2], [4, 2]]):
        decode_batch(changed(images=images), "array")


def test_an_image_with_too_many_pixels_is_rejected(monkeypatch):
    monkeypatch.setattr(wire, "MAX_PIXELS", 19)
    with raises("reward-images", index=0, width=5, height=4, limit=19):
        decode_batch(changed(), "array")


def test_other_formats_than_png_are_not_opened(tmp_path):
    import base64

    Image.new("RGB", (2, 2)).save(tmp_path / "a.bmp")
    text = base64.b64encode((tmp_path / "a.bmp").read_bytes()).decode()
    with raises("reward-images", index=0):
        decode_batch(changed(images=[text, text]), "pil")


@pytest.mark.parametrize(
    ("token", "valid"), [("a-._~9", True), ("", False), ("a b", False), ("ä", False), ("a\nb", False)]
)
def test_a_token_must_fit_into_a_header(token, valid):
    if valid:
        check_token(token)
        return
    with raises("token-invalid") as caught:
        check_token(token)
    assert not token or token not in caught.value.message


@pytest.mark.parametrize("document", [None, {}, {"scores": 1.0}, {"scores": [], "details": {}}])
def test_an_invalid_result_is_rejected(document):
    with raises("server-protocol"):
        decode_result(document)
