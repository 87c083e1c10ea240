import hashlib

import numpy as np
import pytest
from PIL import Image
from support.errors import raises

from tdmr1_rewards.feedback.hashing import image_hash

pytestmark = pytest.mark.unit

PIXELS = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)


def test_the_hash_covers_size_and_pixels():
    assert image_hash(PIXELS) == hashlib.sha256(b"3x2:" + bytes(range(18))).hexdigest()


def test_arrays_images_and_files_with_the_same_pixels_have_the_same_hash(tmp_path):
    image = Image.fromarray(PIXELS)
    image.save(tmp_path / "a.png", compress_level=0)
    image.save(tmp_path / "b.webp", lossless=True)
    views = [image, image.convert("RGBA"), PIXELS[::-1][::-1], np.asfortranarray(PIXELS)]
    views += [Image.open(tmp_path / name) for name in ("a.png", "b.webp")]
    assert {image_hash(view) for view in views} == {image_hash(PIXELS)}


def test_the_same_bytes_in_another_shape_have_another_hash():
    assert image_hash(PIXELS.reshape(3, 2, 3)) != image_hash(PIXELS)
    assert image_hash(PIXELS[:, ::-1]) != image_hash(PIXELS)


@pytest.mark.parametrize("wrong", [PIXELS.astype(float), PIXELS[..., 0], PIXELS[..., :2], [1, 2], None])
def test_anything_else_is_refused(wrong):
    with raises("feedback-item", shape=list(getattr(wrong, "shape", []))):
        image_hash(wrong)
