"""Batches and results as JSON with PNG pictures in base64: what goes to another process or machine. Never pickle.

It needs the standard library, Pillow for pictures, and numpy for a reward that takes its images as an array.
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
"""The version of everything said to workers and servers. It rises when an older one would no longer understand."""

MAX_PIXELS = 1 << 26
"""Of one picture (8192 x 8192): more is refused before it is unpacked."""


def encode_batch(batch: RewardBatch) -> dict[str, Any]:
    """The batch as plain JSON values; images are PIL RGB images or a uint8 array (N, H, W, 3).

    In metadata tuples become lists, and what JSON does not know becomes its text.
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
    """The batch that `encode_batch` made, bit for bit, with its images in the format that the reward takes.

    Raises Tdmr1Error for what is no such batch, and ImportError where Pillow or numpy are missing.
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
    """A checked result as plain JSON values."""
    return {"scores": list(result.scores), "details": plain(result.details)}


def decode_result(document: Any) -> RewardResult:
    """The result that `encode_result` made; its scores are still to be checked. Raises Tdmr1Error for anything else."""
    fields = _mapping(document, "the result")
    details = fields.get("details")
    return RewardResult(_list_of(fields, "scores", object), None if details is None else list(details))


def encode_image(image: Any) -> str:
    """A PIL RGB image or a uint8 array (H, W, 3) as the base64 text of a PNG file."""
    from PIL import Image

    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, format="PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def plain(value: Any) -> Any:
    """The value as strict JSON has it: arrays as lists, mappings with text keys, and the text of anything else."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if hasattr(value, "tolist"):  # numpy's arrays and numbers, and torch's
        return plain(value.tolist())
    return str(value)


def check_token(token: str) -> None:
    """Raise Tdmr1Error, without the token in it, for one that no HTTP header can carry."""
    if not re.fullmatch(r"[!-~]+", token):
        raise Tdmr1Error(
            "the token has characters that it can't have, or none at all", "use ASCII letters, digits and -._~ only"
        )


def _decode_image(text: str, index: int) -> Any:
    from PIL import Image

    try:
        picture = Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=["PNG"])
        if picture.width * picture.height > MAX_PIXELS:
            raise Tdmr1Error(f"images[{index}] has {picture.width} x {picture.height} pixels, more than {MAX_PIXELS}")
        return picture.convert("RGB")
    except Tdmr1Error:
        raise
    except Exception as error:  # a broken file makes Pillow raise nearly anything
        raise Tdmr1Error(f"images[{index}] is no PNG picture in base64") from error


def _stacked(images: Sequence[Any]) -> Any:
    """PIL images of one size as one uint8 array (N, H, W, 3)."""
    import numpy as np

    sizes = sorted({image.size for image in images})
    if len(sizes) > 1:
        raise Tdmr1Error(f"the images are of different sizes: {' and '.join(f'{w} x {h}' for w, h in sizes)}")
    if not images:
        return np.zeros((0, 0, 0, 3), np.uint8)
    return np.stack([np.asarray(image) for image in images])


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise Tdmr1Error(f"{what} is a {type(value).__name__}, not an object")
    return value


def _list_of(fields: Mapping[str, Any], name: str, kind: type) -> list[Any]:
    values = fields.get(name)
    if not isinstance(values, list):
        raise Tdmr1Error(f"{name} is {'missing' if values is None else 'a ' + type(values).__name__}, not a list")
    for index, value in enumerate(values):
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise Tdmr1Error(f"{name}[{index}] is a {type(value).__name__}")
    return values


def _integer(fields: Mapping[str, Any], name: str) -> int:
    value = fields.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise Tdmr1Error(f"{name} is a {type(value).__name__}, not a whole number")
    return value
