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


def decode_batch(document: Any, image_format: ImageFormat) -> RewardBatch:
    """Decode a batch of `encode_batch`; the images are bit-identical, in the format that the reward takes.

    Raises Tdmr1Error for an invalid document, and ImportError if Pillow or numpy is missing.
    """
    fields = _mapping(document, "the batch")
    context = _mapping(fields.get("context"), "context")
    folder = context.get("run_folder")
    images = [_decode_image(text, i) for i, text in enumerate(_list_of(fields, "images", str))]
    return RewardBatch(
        images=images if image_format == "pil" else _stacked(images),
        prompts=_list_of(fields, "prompts", str),
        metadata=_list_of(fields, "metadata", Mapping),
        group_ids=_list_of(fields, "group_ids", int),
        image_ids=_list_of(fields, "image_ids", int),
        context=RewardContext(
            None if folder is None else Path(str(folder)), _integer(context, "iteration"), _integer(context, "seed")
        ),
    )


def encode_result(result: RewardResult) -> dict[str, Any]:
    """A checked result as plain JSON data."""
    return {"scores": list(result.scores), "details": plain(result.details)}


def decode_result(document: Any) -> RewardResult:
    """Decode a result of `encode_result`. Its scores are not checked. Raises Tdmr1Error for an invalid document."""
    fields = _mapping(document, "the result")
    details = fields.get("details")
    return RewardResult(_list_of(fields, "scores", object), None if details is None else list(details))


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


def check_token(token: str) -> None:
    """Raise Tdmr1Error for a token that an HTTP header cannot carry. The message does not contain the token."""
    if not re.fullmatch(r"[!-~]+", token):
        raise Tdmr1Error(
            "the token is empty or has characters that an HTTP header cannot carry",
            "use ASCII letters, digits and -._~ only",
            code="token-invalid",
        )


def _decode_image(text: str, index: int) -> Any:
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=["PNG"])
        if image.width * image.height > MAX_PIXELS:
            raise Tdmr1Error(
                f"images[{index}] has {image.width} x {image.height} pixels, but at most {MAX_PIXELS} are allowed",
                code="reward-images",
                values={"index": index, "width": image.width, "height": image.height, "limit": MAX_PIXELS},
            )
        return image.convert("RGB")
    except Tdmr1Error:
        raise
    except Exception as error:  # Pillow raises many types of exceptions for a broken file
        raise Tdmr1Error(
            f"images[{index}] is not a PNG image in base64", code="reward-images", values={"index": index}
        ) from error


def _stacked(images: Sequence[Any]) -> Any:
    """PIL images of one size as one uint8 array (N, H, W, 3). Raises Tdmr1Error for different sizes."""
    import numpy as np

    sizes = sorted({image.size for image in images})
    if len(sizes) > 1:
        raise Tdmr1Error(
            f"the images have different sizes: {' and '.join(f'{w} x {h}' for w, h in sizes)}",
            code="reward-images",
            values={"sizes": [list(size) for size in sizes]},
        )
    if not images:
        return np.zeros((0, 0, 0, 3), np.uint8)
    return np.stack([np.asarray(image) for image in images])


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _invalid(what, value, "an object")
    return value


def _list_of(fields: Mapping[str, Any], name: str, kind: type) -> list[Any]:
    values = fields.get(name)
    if not isinstance(values, list):
        raise _invalid(name, values, "a list")
    for index, value in enumerate(values):
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise _invalid(f"{name}[{index}]", value, f"of type {kind.__name__}")
    return values


def _integer(fields: Mapping[str, Any], name: str) -> int:
    value = fields.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise _invalid(name, value, "an integer")
    return value


def _invalid(field: str, value: Any, expected: str) -> Tdmr1Error:
    found = "missing" if value is None else f"a {type(value).__name__}"
    return Tdmr1Error(
        f"invalid message: {field} is {found}, but must be {expected}",
        "install the same version of tdmr1 on both machines",
        code="server-protocol",
        values={"field": field, "found": found, "expected": expected},
    )
