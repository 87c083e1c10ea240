"""What a request to score images may contain."""

import base64
import json
import time
import zlib

import numpy as np
import pytest
from support.reward_batches import make_batch

from tdmr1_rewards.calling.wire import encode_batch
from tdmr1_rewards.serving import score_request
from tdmr1_rewards.serving.score_request import read_batch
from tdmr1_rewards.serving.web import MOST_DEPTH, Refusal

pytestmark = pytest.mark.unit


def chunk(kind, data=b""):
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def header(width, height, depth=8, color=2):
    return chunk(b"IHDR", width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([depth, color, 0, 0, 0]))


def png(width, height, *extra, depth=8, color=2, bits=24):
    """A black PNG image in base64, with more chunks before its pixels."""
    rows = zlib.compress(bytes((1 + width * bits // 8) * height), 9)
    chunks = [header(width, height, depth, color), *extra, chunk(b"IDAT", rows), chunk(b"IEND")]
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(chunks)).decode()


def batch_of(images, **changes):
    fields = encode_batch(make_batch(*["a"] * len(images)))
    return {"protocol": 1, "batch": fields | {"images": images} | changes}


def refused(document, words, status=422):
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    began = time.monotonic()
    with pytest.raises(Refusal) as caught:
        read_batch(body)
    assert caught.value.status == status
    assert words in caught.value.error
    assert caught.value.error.isprintable()
    assert time.monotonic() - began < 5


def test_the_pixels_of_all_images_are_limited_before_an_image_is_decompressed():
    bomb = png(8192, 8192, depth=1, color=0, bits=1)
    assert len(bomb) < 20_000
    refused(batch_of([bomb] * 5), f"{5 * 8192 * 8192} pixels in all, but at most {score_request.MOST_PIXELS}")
    refused(batch_of([png(1, 1), bomb]), "different sizes: 1 x 1 and 8192 x 8192")
    refused(batch_of([png(9000, 8192, depth=1, color=0, bits=1)]), "images[0] has 9000 x 8192 pixels")


def test_the_number_of_images_is_limited():
    refused(batch_of([png(1, 1)] * 4097), "4097 images, but at most 4096")
    assert len(read_batch(json.dumps(batch_of([png(1, 1)] * 300)).encode())) == 300


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(30_000_000), 9)),
        chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(bytes(30_000_000), 9)),
        chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(30_000_000), 9)),
        header(8192, 8192),
        chunk(b"acTL", bytes(8)),
        chunk(b"eXIf", b"MM\0*\0\0\0\x08" + b"\xff" * 40),
    ],
    ids=["zTXt", "iTXt", "iCCP", "second header", "acTL", "eXIf"],
)
def test_chunks_that_are_no_pixels_are_not_read(extra):
    images = [png(2, 2, extra)] * 3
    began = time.monotonic()
    batch = read_batch(json.dumps(batch_of(images)).encode())
    assert batch.images.shape == (3, 2, 2, 3)
    assert not batch.images.any()
    assert time.monotonic() - began < 2


def test_a_palette_is_kept():
    palette = chunk(b"PLTE", bytes([9, 8, 7])) + chunk(b"tRNS", b"\x80")
    batch = read_batch(json.dumps(batch_of([png(2, 2, palette, color=3, bits=8)])).encode())
    assert np.array_equal(batch.images[0], np.full((2, 2, 3), (9, 8, 7)))


@pytest.mark.parametrize(
    "file",
    [
        b"",
        b"\x89PNG\r\n\x1a\n",
        b"\x89PNG\r\n\x1a\n" + header(2, 2),
        b"\x89PNG\r\n\x1a\n" + header(0, 5),
        b"\x89PNG\r\n\x1a\n" + header(2, 2) + b"\xff\xff\xff\xffIDAT",
        b"\x89PNG\r\n\x1a\n" + header(2, 2) + chunk(b"IDAT", b"no zlib stream") + chunk(b"IEND"),
        b"\x89PNG\r\n\x1a\n" + header(2, 2, depth=3) + chunk(b"IDAT", zlib.compress(bytes(14))) + chunk(b"IEND"),
        b"\x89PNG\r\n\x1a\n" + header(2, 2) + chunk(b"IDAT", zlib.compress(bytes(2))) + chunk(b"IEND"),
        b"\x89PNG\r\n\x1a\n" + header(2, 2)[:-1] + b"?" + chunk(b"IDAT", zlib.compress(bytes(14))) + chunk(b"IEND"),
    ],
)
def test_broken_images_are_refused(file):
    refused(batch_of([base64.b64encode(file).decode()]), "images[0] is not a PNG image")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompts": ["x" * 70_000]}, "prompts[0] has 70000 characters, but at most 65536"),
        ({"prompts": ["\ud800"]}, "prompts[0] has a surrogate"),
        ({"metadata": [{"a": {"\udfff": 1}}]}, "metadata[0] has a surrogate"),
        ({"metadata": [{"a": "x" * 1_100_000}]}, "metadata[0] has 1100009 characters"),
        ({"image_ids": [2**64]}, "outside its range"),
        ({"group_ids": [-(10**400)]}, "outside its range"),
        ({"context": {"iteration": -1, "seed": 0}}, "outside its range"),
        ({"context": {"iteration": 0, "seed": 1e300}}, "outside its range"),
    ],
)
def test_values_outside_their_limits_are_refused(changes, words):
    refused(batch_of([png(1, 1)], **changes), words)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"protocol": 1, "protocol": 1}', "the field 'protocol' twice"),
        (b'{"batch": {"\\ud800": 1, "\\ud800": 2}}', "the field '\\ud800' twice"),
        (b'{"protocol": NaN}', "not JSON"),
        (b'{"protocol": -Infinity}', "not JSON"),
        (b'{"protocol": 1e999}', "not JSON"),
        (b'{"protocol": ' + b"9" * 5000 + b"}", "not JSON"),
        ('{"protocol": 1}'.encode("utf-16"), "not JSON"),
        (b'{"protocol": "\xed\xa0\x80"}', "not JSON"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "lists and objects in each other"),
        (b'{"a": ' + b"[" * MOST_DEPTH + b"]" * MOST_DEPTH + b"}", f"more than {MOST_DEPTH} lists and objects"),
        (b'{"protocol": "\\ud800"}', "version '\\ud800'"),
    ],
    ids=str,
)
def test_other_documents_than_strict_json_are_refused(body, words):
    refused(body, words, 400)


def test_a_byte_order_mark_and_the_deepest_document_are_read():
    deep = json.loads("[" * (MOST_DEPTH - 4) + "]" * (MOST_DEPTH - 4))
    document = batch_of([png(1, 1)], metadata=[{"a": deep}])
    assert read_batch(json.dumps(document).encode("utf-8-sig")).metadata == [{"a": deep}]
