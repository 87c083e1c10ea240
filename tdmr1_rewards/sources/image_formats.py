"""The formats in which a reward of another toolkit receives images, and the conversions to them."""

from __future__ import annotations

import importlib.util
from typing import Any, Literal

ImageForm = Literal["tensor", "array", "pil"]
IN_WORDS: dict[str, tuple[str, str]] = {
    "tensor": ("a float tensor (N, 3, H, W) in [0, 1]", "a float tensor (1, 3, H, W) in [0, 1]"),
    "pil": ("PIL images", "a PIL image"),
    "array": ("a uint8 array (N, H, W, 3)", "a uint8 array (H, W, 3)"),
}
"""What a function receives: for a batch, and if it takes one image at a time."""


TESTED = "tested"
"""In place of a format: the function does not declare one, so it is tested at set-up."""


def in_words(form: str, *, single: bool = False) -> str:
    """What a function receives in a format, such as "a uint8 array (N, H, W, 3)"."""
    return IN_WORDS[form][single]


def known_forms() -> tuple[ImageForm, ...]:
    """The formats of this environment, the preferred one first: no tensors without torch."""
    return ("tensor", "pil", "array") if importlib.util.find_spec("torch") is not None else ("array", "pil")


def available(form: ImageForm | None) -> ImageForm | None:
    """The format itself; without torch an array instead of a tensor, which functions of flow_grpo also accept."""
    return "array" if form == "tensor" and form not in known_forms() else form


def convert_images(images: Any, form: ImageForm, device: str) -> Any:
    """Convert PIL images or a uint8 array (N, H, W, 3) to `form`. A tensor is float (N, 3, H, W) in [0, 1]."""
    import numpy as np

    if form == "pil":
        from PIL import Image

        return [image if isinstance(image, Image.Image) else Image.fromarray(image) for image in images]
    array = images if isinstance(images, np.ndarray) else np.stack([np.asarray(image) for image in images])
    if form == "array":
        return array
    import torch

    return torch.tensor(array).permute(0, 3, 1, 2).to(device).float() / 255  # (N, 3, H, W)
