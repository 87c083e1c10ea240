"""Image files of users: broken ones of every kind are one error, and there is one function that reads them."""

import io
import os
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from support.errors import raises
from support.paths import ROOT

from tdmr1_rewards.calling.image_files import read_image
from tdmr1_rewards.errors import Tdmr1Error

pytestmark = pytest.mark.unit

ERRORS = (SyntaxError, ValueError, struct.error, Image.DecompressionBombError, OSError, EOFError, zlib.error)
ERRORS += (MemoryError, IndexError, TypeError, KeyError, OverflowError, AttributeError, RecursionError)


def files():
    """Valid files of several formats, with metadata."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 17, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "x" * 40
    for kind in ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "PPM"):
        buffer = io.BytesIO()
        image.save(buffer, kind, **({"exif": exif} if kind in ("PNG", "JPEG", "WEBP") else {}))
        yield buffer.getvalue()


def outcome(path):
    """The mode of an image, or the code and path of the error."""
    try:
        return read_image(path).mode
    except Tdmr1Error as error:
        return error.code, error.values["path"]


def test_a_changed_file_is_an_image_or_one_error(tmp_path):
    rng = random.Random(0)
    path, errors = tmp_path / "a.png", 0
    for valid in files():
        for number in range(40):
            content = bytearray(valid)
            if number % 3 == 0:
                del content[rng.randrange(len(content)) :]
            for _ in range(rng.choice([1, 3, 30]) if content else 0):
                content[rng.randrange(min(len(content), rng.choice([64, 10**6])))] = rng.randrange(256)
            path.write_bytes(content)
            found = outcome(path)
            assert found in ("RGB", ("file-unreadable", str(path)))
            errors += found != "RGB"
    assert 50 < errors < 250


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("where", ["open", "load"])
def test_every_type_of_exception_of_pillow_is_the_same_error(tmp_path, monkeypatch, error, where):
    def fail(*_, **__):
        raise error("broken")

    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    monkeypatch.setattr(*((Image, "open") if where == "open" else (Image.Image, "convert")), fail)
    with raises("file-unreadable", path=str(tmp_path / "a.png")) as caught:
        read_image(tmp_path / "a.png")
    assert caught.value.message == f"cannot read {tmp_path / 'a.png'} as an image"


def test_an_image_with_broken_exif_data_is_read(tmp_path):
    Image.new("RGB", (8, 4)).save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert read_image(tmp_path / "a.jpg").size == (8, 4)


def test_other_things_than_files_and_other_formats_are_errors(tmp_path):
    with raises("file-missing"):
        read_image(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "script.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    for name in ("pipe.png", "script.png", ""):
        with raises("file-unreadable"):
            read_image(tmp_path / name)


def test_an_image_with_too_many_pixels_is_an_error(tmp_path, monkeypatch):
    Image.new("L", (100, 100)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with raises("file-unreadable"):
        read_image(tmp_path / "a.png")


def test_no_other_module_opens_image_files():
    packages = ("tdmr1_rewards", "tdmr1_core", "tdmr1_cli")
    found = {
        str(path.relative_to(ROOT))
        for package in packages
        for path in (ROOT / package).rglob("*.py")
        if "Image.open(" in path.read_text(encoding="utf-8")
    }
    own = {"tdmr1_rewards/calling/wire.py", "tdmr1_rewards/contract/corruptions.py"}  # they read no files of users
    assert found == {"tdmr1_rewards/calling/image_files.py"} | own
