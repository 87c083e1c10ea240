"""Does a picture hold exactly as many of a thing as were asked for?"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field

from tdmr1_rewards.api import RewardBatch, RewardExample, RewardResult
from tdmr1_rewards.builtin.detection.blobs import HUE_RANGES, BlobDetector, count_objects
from tdmr1_rewards.builtin.detection.colours import COLOUR_WORDS
from tdmr1_rewards.builtin.detection.detections import Detector, UnknownClassError, strongest
from tdmr1_rewards.builtin.detection.detectors import DetectorChoice, DetectorOptions
from tdmr1_rewards.errors import Tdmr1Error

NUMBER_WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DEFAULT_CHECKPOINT = "PekingU/rtdetr_v2_r50vd"
"""RT-DETRv2 (Apache-2.0, 172 MB, the 80 classes of COCO)."""


class ObjectCountOptions(DetectorOptions):
    """How objects are found and the score is made."""

    score: Literal["exact", "graded", "mixed"] = Field(
        "mixed",
        description="exact: 1 if the count is right, else 0; graded: 1 - |found - asked| / asked, at least 0; "
        "mixed: the mean of both",
    )
    threshold: float = Field(
        0.5, ge=0, lt=1, description="objects that a checkpoint is no surer of than this are not counted"
    )
    max_per_class: int = Field(100, ge=1, description="most objects counted, the surest; blobs are all counted")


@dataclass(frozen=True)
class Request:
    """How many objects (at least 1), of which colour and class; None is any, or not told in the metadata."""

    count: int
    colour: str | None
    thing: str | None = None


class ObjectCount:
    """Counts objects of the asked kind: blobs by their colour, a checkpoint's objects by their class.

    The request is GenEval's metadata, `include[0]` with its `count`, `color` and `class`, or else the first number
    and the first colour word of the prompt, and the first class that it names. Scores are 0 to 1, and None where no
    number is asked for or the thing can't be told: a colour that is no hue, a class that the checkpoint doesn't know.

    Blobs of other colours are not counted, and without a colour all are; their shape makes no difference, and touching
    ones of one colour are one. A checkpoint's objects are counted whatever their colour.
    """

    def __init__(self, options: ObjectCountOptions) -> None:
        self._options = options
        self._detectors = DetectorChoice(options, DEFAULT_CHECKPOINT, options.threshold)
        self._knows_some = False

    def setup(self, device: str) -> None:
        """Load the checkpoint that the options name; the one of `auto` waits for a large picture."""
        self._detectors.set_up(device)

    def __call__(self, batch: RewardBatch) -> RewardResult:
        """Score uint8 images (N, H, W, 3).

        Raises Tdmr1Error if the detector can't be loaded, or knows no class of the batch and none of any before it.
        """
        requests = [
            read_request(metadata, prompt) for metadata, prompt in zip(batch.metadata, batch.prompts, strict=True)
        ]
        detector = self._detectors.for_images(batch.images)
        if isinstance(detector, BlobDetector):
            return self._count_blobs(np.asarray(batch.images), requests)
        return self._count_detections(detector, batch, requests)

    def _count_blobs(self, images: np.ndarray, requests: Sequence[Request | None]) -> RewardResult:
        found = count_objects(images, [_hues(request) for request in requests], self._options.min_area)
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

    def _count_detections(
        self, detector: Detector, batch: RewardBatch, requests: Sequence[Request | None]
    ) -> RewardResult:
        options = self._options
        classes, reasons = self._classes(detector, batch.prompts, requests)
        found = detector.detect(batch.images, [[name] if name else [] for name in classes])
        scores: list[float | None] = []
        details: list[dict[str, Any]] = []
        for request, name, reason, detections in zip(requests, classes, reasons, found, strict=True):
            if request is None or name is None:
                scores.append(None)
                details.append({"reason": reason})
                continue
            counted = strongest(
                detections,
                threshold=options.threshold,
                limit=options.max_per_class,
                max_overlap=options.max_overlap,
            ).get(name, [])
            scores.append(self._score(request.count, len(counted)))
            boxes = [detection.told for detection in counted]
            details.append({"asked": request.count, "class": name, "found": len(counted), "boxes": boxes})
        return RewardResult(scores, details)

    def _classes(
        self, detector: Detector, prompts: Sequence[str], requests: Sequence[Request | None]
    ) -> tuple[list[str | None], list[str]]:
        """The detector's class for each request, or None and the reason."""
        classes: list[str | None] = []
        reasons: list[str] = []
        unknown: Tdmr1Error | None = None
        for request, prompt in zip(requests, prompts, strict=True):
            name, reason = None, "no number is asked for"
            if request is not None:
                try:
                    name = _class(detector, request, prompt)
                except UnknownClassError as error:
                    unknown, reason = error, error.message
            classes.append(name)
            reasons.append(reason)
        self._knows_some |= any(classes)
        if unknown is not None and not self._knows_some:
            raise unknown
        return classes, reasons

    def _score(self, asked: int, found: int) -> float:
        exact = float(found == asked)
        graded = max(0.0, 1 - abs(found - asked) / asked)
        return {"exact": exact, "graded": graded, "mixed": (exact + graded) / 2}[self._options.score]


def read_request(metadata: Mapping[str, Any], prompt: str) -> Request | None:
    """What is asked for, or None where no number is. Raises Tdmr1Error for a count that is none."""
    include = metadata.get("include") or [{}]
    if "count" in include[0]:
        count = include[0]["count"]
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise Tdmr1Error(
                f"the metadata of prompt {prompt!r} ask for a count of {count!r}",
                "include[0]['count'] is a whole number of at least 1",
            )
        return Request(count, include[0].get("color"), include[0].get("class"))
    number = re.search(rf"\b(?:{'|'.join(NUMBER_WORDS)}|[1-9]\d*)\b", prompt, re.IGNORECASE)
    if number is None:
        return None
    word = number[0].lower()
    colour = re.search(rf"\b(?:{'|'.join(COLOUR_WORDS)})\b", prompt, re.IGNORECASE)
    return Request(
        NUMBER_WORDS.index(word) + 1 if word in NUMBER_WORDS else int(word), colour[0].lower() if colour else None
    )


def examples() -> list[RewardExample]:
    """Two red squares, and prompts that they fit and don't."""
    image = np.full((32, 32, 3), 230, np.uint8)
    image[4:12, 4:12] = image[18:26, 18:26] = (220, 35, 35)
    asked = [("two red squares", True), ("three red squares", False), ("one blue square", False)]
    return [RewardExample(image=image, prompt=prompt, good=good) for prompt, good in asked]


def _class(detector: Detector, request: Request, prompt: str) -> str:
    """The detector's class for a request. Raises UnknownClassError where there is none."""
    if request.thing is not None:
        return detector.class_of(request.thing)
    found = detector.class_in(prompt)
    if found is None:
        raise UnknownClassError(
            f"the prompt {prompt!r} names no class that the detector knows",
            "name it in the prompt's metadata: include[0]['class']",
        )
    return found


def _hues(request: Request | None) -> tuple[str, ...]:
    """The colours to count for a request: none where there is nothing to count or hue cannot tell it."""
    if request is None:
        return ()
    if request.colour is None:
        return tuple(HUE_RANGES)
    return (request.colour,) if request.colour in HUE_RANGES else ()
