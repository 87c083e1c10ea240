"""Does a picture hold exactly as many objects of a colour as were asked for?"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field
from scipy import ndimage

from tdmr1_rewards.api import RewardBatch, RewardResult
from tdmr1_rewards.errors import Tdmr1Error
from tdmr1_rewards.options import RewardOptions

NUMBER_WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
COLOUR_WORDS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
"""GenEval's ten colours."""
HUE_RANGES = {
    "red": (345, 378),
    "orange": (18, 40),
    "yellow": (40, 70),
    "green": (70, 165),
    "blue": (165, 260),
    "purple": (260, 315),
}
"""The colours that hue alone can tell, in degrees; a range may pass 360."""
MIN_CHROMA = 0.2
"""Of 1: what is less colourful than this is background, of whatever shade."""
EDGE_CHROMA = 0.6
"""A pixel with less than this share of the strongest colour within two pixels is a mixed one on an object's edge."""


class ObjectCountOptions(RewardOptions):
    """How objects are found and the score is made."""

    score: Literal["exact", "graded", "mixed"] = Field(
        "mixed",
        description="exact: 1 if the count is right, else 0; graded: 1 - |found - asked| / asked, at least 0; "
        "mixed: the mean of both",
    )
    min_area: float = Field(6.0, gt=0, description="smallest object, in pixels at the image's own size")
    detector: Literal["blobs"] = Field("blobs", description="blobs: connected areas of one hue on a grey background")


@dataclass(frozen=True)
class Request:
    """How many objects (at least 1) of which colour; None is any colour."""

    count: int
    colour: str | None


class ObjectCount:
    """Counts objects of the asked colour. Objects of other colours are not counted; without a colour, all are.

    The request is GenEval's metadata, `include[0]` with its `count` and `color`, or else the first number
    and the first colour word of the prompt. Scores are 0 to 1, and None where no number is asked for or hue cannot
    tell the colour. Touching objects of one colour are one object.
    """

    def __init__(self, options: ObjectCountOptions) -> None:
        self._options = options

    def __call__(self, batch: RewardBatch) -> RewardResult:
        """Score uint8 images (N, H, W, 3)."""
        requests = [_request(metadata, prompt) for metadata, prompt in zip(batch.metadata, batch.prompts, strict=True)]
        found = count_objects(
            np.asarray(batch.images), [_hues(request) for request in requests], self._options.min_area
        )
        scores: list[float | None] = []
        details: list[dict[str, Any]] = []
        for request, count in zip(requests, found, strict=True):
            if request is None:
                scores.append(None)
                details.append({"reason": "no number is asked for"})
            elif not _hues(request):
                scores.append(None)
                details.append({"asked": request.count, "reason": f"hue cannot tell {request.colour}"})
            else:
                scores.append(self._score(request.count, count))
                details.append({"asked": request.count, "found": count})
        return RewardResult(scores, details)

    def _score(self, asked: int, found: int) -> float:
        exact = float(found == asked)
        graded = max(0.0, 1 - abs(found - asked) / asked)
        return {"exact": exact, "graded": graded, "mixed": (exact + graded) / 2}[self._options.score]


def count_objects(images: np.ndarray, colours: list[tuple[str, ...]], min_area: float) -> list[int]:
    """How many objects of each image's `colours` there are in uint8 images (N, H, W, 3); none are wanted where empty.

    An object is an 8-connected area of one colour of at least `min_area` pixels.
    """
    hue, coloured = _hue_and_mask(images)
    owners = [i for i, wanted in enumerate(colours) for _ in wanted]
    ranges = np.array([HUE_RANGES[colour] for wanted in colours for colour in wanted]).reshape(-1, 2, 1, 1)
    # One mask for each image and colour that is wanted in it.
    masks = coloured[owners] & ((hue[owners] - ranges[:, 0]) % 360 < ranges[:, 1] - ranges[:, 0])  # (M, H, W)
    counts = np.bincount(owners, weights=_count_areas(masks, min_area), minlength=len(images))
    return [int(count) for count in counts]


def _hue_and_mask(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hue in degrees and whether a pixel is of a colour at all, both (N, H, W)."""
    red, green, blue = np.moveaxis(images.astype(np.float32) / 255, -1, 0)
    highest = np.maximum(np.maximum(red, green), blue)
    # Chroma and not saturation: it is linear in how much of an edge pixel the object covers, and calm near black.
    chroma = highest - np.minimum(np.minimum(red, green), blue)
    span = np.maximum(chroma, 1e-6)
    hue = np.where(highest == red, (green - blue) / span, (blue - red) / span + 2)
    hue = 60 * np.where((highest == blue) & (highest != red) & (highest != green), (red - green) / span + 4, hue)
    nearby = ndimage.maximum_filter(chroma, size=(1, 5, 5), mode="nearest")
    return hue % 360, chroma >= np.maximum(MIN_CHROMA, EDGE_CHROMA * nearby)


def _count_areas(masks: np.ndarray, min_area: float) -> np.ndarray:
    """The number of 8-connected areas of at least `min_area` pixels in each of the masks (M, H, W)."""
    within_image = np.zeros((3, 3, 3), dtype=bool)
    within_image[1] = True
    labels, number = ndimage.label(masks, structure=within_image)
    sizes = np.bincount(labels.ravel(), minlength=number + 1)
    owner = np.zeros(number + 1, dtype=np.intp)
    owner[labels] = np.arange(len(masks)).reshape(-1, 1, 1)
    large = sizes >= min_area
    large[0] = False  # the background
    return np.bincount(owner[large], minlength=len(masks))


def _hues(request: Request | None) -> tuple[str, ...]:
    """The colours to count for a request: none where there is nothing to count or hue cannot tell it."""
    if request is None:
        return ()
    if request.colour is None:
        return tuple(HUE_RANGES)
    return (request.colour,) if request.colour in HUE_RANGES else ()


def _request(metadata: Mapping[str, Any], prompt: str) -> Request | None:
    """What is asked for, or None where no number is."""
    include = metadata.get("include") or [{}]
    if "count" in include[0]:
        count = include[0]["count"]
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise Tdmr1Error(
                f"the metadata of prompt {prompt!r} ask for a count of {count!r}",
                "include[0]['count'] is a whole number of at least 1",
            )
        return Request(count, include[0].get("color"))
    number = re.search(rf"\b(?:{'|'.join(NUMBER_WORDS)}|[1-9]\d*)\b", prompt, re.IGNORECASE)
    if number is None:
        return None
    word = number[0].lower()
    colour = re.search(rf"\b(?:{'|'.join(COLOUR_WORDS)})\b", prompt, re.IGNORECASE)
    return Request(
        NUMBER_WORDS.index(word) + 1 if word in NUMBER_WORDS else int(word), colour[0].lower() if colour else None
    )
