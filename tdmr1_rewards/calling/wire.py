"""Encodes batches and results as JSON with PNG images in base64, for another process or machine. Never pickle.

Needs only the standard library and Pillow; numpy for a reward that takes its images as an array.
"""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tdmr1_rewards.api import ImageFormat, RewardBatch, RewardContext, RewardResult
from tdmr1_rewards.calling.png import START, pixel_chunks, png_size
from tdmr1_rewards.errors import Tdmr1Error

PROTOCOL = 1
"""The version of the messages to workers and servers. It increases when older versions can no longer read them."""

MAX_PIXELS = 1 << 26
"""The largest number of pixels of one image (8192 x 8192). A larger image is rejected before it is decompressed."""


def encode_batch(batch: RewardBatch) -> dict[str, Any]:
    """The batch as plain JSON data. Its images are PIL RGB images or a uint8 array (N, H, W, 3).

    In metadata, tuples become lists, and objects of other types become their text.
    """
    context = batch.context
    return {
        "images": [encode_image(image) for image in batch.images],
        "prompts": list(batch.prompts),
        "metadata": [plain(entry) for entry in batch.metadata],
        "group_ids": [int(group) for group in batch.group_ids],
        "image_ids": [int(image) for image in batch.image_ids],
        "context": {
            "run_folder": None if context.run_folder is None else str(context.run_folder),
            "iteration": int(context.iteration),
            "seed": int(context.seed),
        },
    }


def decode_batch(document: Any, image_format: ImageFormat, most_pixels: float = math.inf) -> RewardBatch:
    """Decode a batch of `encode_batch`; the images are bit-identical, in the format that the reward takes.

    Raises Tdmr1Error for an invalid document and for more than `most_pixels` pixels in all images together, and
    ImportError if Pillow or numpy is missing. Sizes are checked before an image is decompressed.
    """
    fields = _mapping(document, "the batch")
    context = _mapping(fields.get("context"), "context")
    folder = context.get("run_folder")
    texts = _list_of(fields, "images", str)
    sizes = [_image_size(text, i) for i, text in enumerate(texts)]
    pixels = sum(width * height for width, height in sizes)
    if pixels > most_pixels:
        raise Tdmr1Error(
            f"the images have {pixels} pixels in all, but at most {most_pixels} are allowed",
            "send fewer images per request (option batch_size)",
            code="reward-images",
            values={"pixels": pixels, "limit": most_pixels},
        )
    return RewardBatch(
        images=[_decode_image(text, i) for i, text in enumerate(texts)]
        if image_format == "pil"
        else _decode_array(texts, sizes),
        prompts=_list_of(fields, "prompts", str),
        metadata=_list_of(fields, "metadata", Mapping),
        group_ids=_integers(fields, "group_ids"),
        image_ids=_integers(fields, "image_ids"),
        context=RewardContext(
            None if folder is None else Path(str(folder)),
            _integer(context.get("iteration"), "iteration"),
            _integer(context.get("seed"), "seed"),
        ),
    )


def encode_result(result: RewardResult) -> dict[str, Any]:
    """A checked result as plain JSON data."""
    return {"scores": list(result.scores), "details": plain(result.details)}


def decode_result(document: Any) -> RewardResult:
    """Decode a result of `encode_result`. Only the types of its two lists are checked. Raises Tdmr1Error for others."""
    fields = _mapping(document, "the result")
    details = None if fields.get("details") is None else _list_of(fields, "details", object)
    return RewardResult(_list_of(fields, "scores", object), details)


def encode_image(image: Any) -> str:
    """A PIL RGB image or a uint8 array (H, W, 3) as the base64 text of a PNG file."""
    from PIL import Image

    pil_image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    pil_image.convert("RGB").save(buffer, format="PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def plain(value: Any) -> Any:
    """The value as strict JSON data: arrays become lists, keys become text, and other objects become their text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if hasattr(value, "tolist"):  # arrays, tensors and scalars of numpy and torch
        return plain(value.tolist())
    return str(value)


def as_integer(value: Any) -> int | None:
    """The integer that a number of JSON is: 8 for 8 and 8.0, which are equal in JSON. None for any other value."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def check_token(token: str) -> None:
    """Raise Tdmr1Error for a token that an HTTP header cannot carry. The message does not contain the token."""
    if not re.fullmatch(r"[!-~]+", token):
        raise Tdmr1Error(
            "the token is empty or has characters that an HTTP header cannot carry",
            "use ASCII letters, digits and -._~ only",
            code="token-invalid",
        )


def _image_size(text: str, index: int) -> tuple[int, int]:
    """Width and height of a PNG file in base64."""
    try:
        width, height = png_size(base64.b64decode(text[: 4 * START // 3], validate=True))
    except ValueError as error:
        raise _not_png(index) from error
    if width * height > MAX_PIXELS:
        raise Tdmr1Error(
            f"images[{index}] has {width} x {height} pixels, but at most {MAX_PIXELS} are allowed",
            code="reward-images",
            values={"index": index, "width": width, "height": height, "limit": MAX_PIXELS},
        )
    return width, height


def decode_image(text: str, index: int) -> Any:
    """The PIL RGB image in a text of `encode_image`. Raises Tdmr1Error, with the `index`, for another text."""
    _image_size(text, index)
    return _decode_image(text, index)


def _decode_image(text: str, index: int) -> Any:
    from PIL import Image

    try:
        file = pixel_chunks(base64.b64decode(text, validate=True))
        return Image.open(io.BytesIO(file), formats=["PNG"]).convert("RGB")
    except Exception as error:  # Pillow raises many types of exceptions for a broken file
        raise _not_png(index) from error


def _not_png(index: int) -> Tdmr1Error:
    message = f"images[{index}] is not a PNG image in base64"
    return Tdmr1Error(message, code="reward-images", values={"index": index})


def _decode_array(texts: Sequence[str], sizes: Sequence[tuple[int, int]]) -> Any:
    """PNG files as one uint8 array (N, H, W, 3). Raises Tdmr1Error for different sizes."""
    import numpy as np

    different = sorted(set(sizes))
    if len(different) > 1:
        raise Tdmr1Error(
            f"the images have different sizes: {' and '.join(f'{w} x {h}' for w, h in different[:8])}",
            code="reward-images",
            values={"sizes": [list(size) for size in different]},
        )
    width, height = different[0] if different else (0, 0)
    images = np.empty((len(texts), height, width, 3), np.uint8)
    for index, text in enumerate(texts):  # one at a time, since an image of Pillow needs 4 bytes a pixel
        images[index] = np.asarray(_decode_image(text, index))
    return images


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _invalid(what, value, "an object")
    return value


def _list_of(fields: Mapping[str, Any], name: str, kind: type) -> list[Any]:
    values = fields.get(name)
    if not isinstance(values, list):
        raise _invalid(name, values, "a list")
    for index, value in enumerate(values):
        if not isinstance(value, kind):
            raise _invalid(f"{name}[{index}]", value, f"of type {kind.__name__}")
    return values


def _integers(fields: Mapping[str, Any], name: str) -> list[int]:
    return [_integer(value, f"{name}[{index}]") for index, value in enumerate(_list_of(fields, name, object))]


def _integer(value: Any, name: str) -> int:
    integer = as_integer(value)
    if integer is None:
        raise _invalid(name, value, "an integer")
    return integer


def _invalid(field: str, value: Any, expected: str) -> Tdmr1Error:
    found = "missing" if value is None else f"a {type(value).__name__}"
    return Tdmr1Error(
        f"invalid message: {field} is {found}, but must be {expected}",
        "install the same version of tdmr1 on both machines, or correct the program that sent the message",
        code="server-protocol",
        values={"field": field, "found": found, "expected": expected},
    )
