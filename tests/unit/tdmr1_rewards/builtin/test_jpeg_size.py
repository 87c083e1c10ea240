"""More detail makes a larger file; the option `prefer` sets the sign of the score."""

import io

import pytest
from PIL import Image, ImageFilter
from support.reward_batches import batch_of

from tdmr1_rewards.builtin.jpeg_size import JpegSize, JpegSizeOptions

pytestmark = pytest.mark.unit

NOISE = Image.effect_noise((64, 64), 100).convert("RGB")
LADDER = [Image.new("RGB", (64, 64), "grey"), *(NOISE.filter(ImageFilter.GaussianBlur(r)) for r in (8, 2, 1)), NOISE]


def score(images, **options):
    return JpegSize(JpegSizeOptions(**options))(batch_of(images, ["an image"] * len(images)))


def test_the_size_increases_with_detail():
    small, large = score(LADDER).scores, score(LADDER, prefer="large").scores
    assert large == sorted(large)
    assert len(set(large)) == len(large)
    assert small == [-size for size in large]
    assert all(size > 0 for size in large)


def test_the_size_increases_with_quality():
    sizes = [score([NOISE], prefer="large", quality=quality).scores[0] for quality in (5, 50, 95, 100)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1] / 2


def test_the_unit_is_1000_bytes_and_the_default_quality_is_ddpos():
    file = io.BytesIO()
    NOISE.save(file, "JPEG", quality=95)
    result = score([NOISE])
    assert result.scores == [-len(file.getvalue()) / 1000]
    assert result.details == [{"kB": -result.scores[0]}]
