"""Does an image show exactly the requested number of objects?"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from pydantic import Field

from tdmr1_rewards.api import RewardBatch, RewardExample, RewardResult, RunPreview
from tdmr1_rewards.builtin.detection.blobs import HUE_RANGES, BlobDetector, count_objects
from tdmr1_rewards.builtin.detection.colours import COLOUR_WORDS
from tdmr1_rewards.builtin.detection.detections import Detector, UnknownClassError, strongest
from tdmr1_rewards.builtin.detection.detectors import DetectorChoice, DetectorOptions
from tdmr1_rewards.calling.wire import plain
from tdmr1_rewards.errors import Tdmr1Error, shorten

NUMBER_WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DEFAULT_CHECKPOINT = "PekingU/rtdetr_v2_r50vd"
"""RT-DETRv2 (Apache-2.0, 172 MB, the 80 classes of COCO)."""
NO_NUMBER = "neither the prompt nor its metadata requests a number"


class ObjectCountOptions(DetectorOptions):
    """How objects are detected and how the score is computed."""

    score: Literal["exact", "graded", "mixed"] = Field(
        "mixed",
        description="exact: 1 if the count is right, else 0; graded: 1 - |found - requested| / requested, at least 0; "
        "mixed: the mean of both",
    )
    threshold: float = Field(0.5, ge=0, lt=1, description="a checkpoint's objects count above this confidence")
    max_per_class: int = Field(
        100, ge=1, description="checkpoint: count at most this many objects, the most confident ones; blobs: no limit"
    )


@dataclass(frozen=True)
class Request:
    """The requested number of objects (at least 1), their color and their class.

    A `colour` of None stands for any color; a `thing` of None means that the metadata names no class.
    """

    count: int
    colour: str | None
    thing: str | None = None


@dataclass(eq=False)
class ObjectCount:
    """Counts the objects of the requested kind: blobs by their color, objects of a checkpoint by their class.

    The request is `include[0]` of GenEval's metadata with `count`, `color` and `class`; without a count there, the
    first number, the first color word and the first class in the prompt. Scores are 0 to 1, or None if no number is
    requested, if hue does not determine the color, or if the checkpoint does not know the class.

    Blobs of other colors are not counted; if no color is requested, all blobs are. The shape of blobs is ignored, and
    touching blobs of one color count as one. Objects of a checkpoint are counted whatever their color.
    """

    options: ObjectCountOptions
    _any_class_known: bool = field(default=False, init=False)

    @cached_property
    def _detectors(self) -> DetectorChoice:
        return DetectorChoice(self.options, DEFAULT_CHECKPOINT, self.options.threshold)

    def setup(self, device: str) -> None:
        """Load the checkpoint if the options name one; `auto` loads its checkpoint at the first large image."""
        self._detectors.set_up(device)

    def __call__(self, batch: RewardBatch) -> RewardResult:
        """Score uint8 images (N, H, W, 3).

        Raises Tdmr1Error if the metadata has a wrong count, if the detector cannot be loaded, or if it knows no class
        of this batch or of an earlier one.
        """
        requests = [
            read_request(metadata, prompt) for metadata, prompt in zip(batch.metadata, batch.prompts, strict=True)
        ]
        detector = self._detectors.for_images(batch.images)
        if isinstance(detector, BlobDetector):
            return self._count_blobs(np.asarray(batch.images), requests)
        return self._count_detections(detector, batch, requests)

    def _count_blobs(self, images: np.ndarray, requests: Sequence[Request | None]) -> RewardResult:
        """The result for uint8 images (N, H, W, 3), by blobs."""
        found = count_objects(images, [_colours_to_count(request) for request in requests], self.options.min_area)
        scores: list[float | None] = []
        details: list[dict[str, Any]] = []
        for request, count in zip(requests, found, strict=True):
            if request is None:
                scores.append(None)
                details.append({"reason": NO_NUMBER})
            elif not _colours_to_count(request):
                scores.append(None)
                details.append({"asked": request.count, "reason": f"hue does not determine the color {request.colour}"})
            else:
                scores.append(self._score(request.count, count))
                details.append({"asked": request.count, "found": count})
        return RewardResult(scores, details)

    def _count_detections(
        self, detector: Detector, batch: RewardBatch, requests: Sequence[Request | None]
    ) -> RewardResult:
        """The result by the detections of a checkpoint."""
        options = self.options
        classes, reasons = self._find_classes(detector, batch.prompts, requests)
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
            boxes = [detection.document() for detection in counted]
            details.append({"asked": request.count, "class": name, "found": len(counted), "boxes": boxes})
        return RewardResult(scores, details)

    def _find_classes(
        self, detector: Detector, prompts: Sequence[str], requests: Sequence[Request | None]
    ) -> tuple[list[str | None], list[str]]:
        """For each request the detector's class, or None and the reason.

        Raises UnknownClassError if the detector knows no class of this batch or of an earlier one.
        """
        classes: list[str | None] = []
        reasons: list[str] = []
        unknown: UnknownClassError | None = None
        for request, prompt in zip(requests, prompts, strict=True):
            name, reason = None, NO_NUMBER
            if request is not None:
                try:
                    name = _find_class(detector, request, prompt)
                except UnknownClassError as error:
                    unknown, reason = error, error.message
            classes.append(name)
            reasons.append(reason)
        self._any_class_known |= any(classes)
        if unknown is not None and not self._any_class_known:
            raise unknown
        return classes, reasons

    def _score(self, requested: int, found: int) -> float:
        """The score of one image, 0 to 1."""
        exact = float(found == requested)
        graded = max(0.0, 1 - abs(found - requested) / requested)
        return {"exact": exact, "graded": graded, "mixed": (exact + graded) / 2}[self.options.score]


def read_request(metadata: Mapping[str, Any], prompt: str) -> Request | None:
    """The request of a prompt and its metadata, or None if they request no number.

    Raises Tdmr1Error if the metadata's `include` has another form, or a count that is not an integer of at least 1.
    """
    include = metadata.get("include") or [{}]
    first = include[0] if isinstance(include, list) else None
    if not isinstance(first, dict) or not all(isinstance(first.get(key), str | None) for key in ("color", "class")):
        raise Tdmr1Error(
            f"prompt {prompt!r}: the metadata's include is {shorten(repr(include))}, not a list of objects",
            'write it like "include": [{"class": "circle", "count": 3, "color": "red"}]',
            code="reward-metadata",
            values={"prompt": prompt, "key": "include", "found": plain(include)},
        )
    if "count" in first:
        count = first["count"]
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise Tdmr1Error(
                f"prompt {prompt!r}: the metadata's include[0]['count'] is {count!r}, not an integer of at least 1",
                "correct the count in the prompt file",
                code="reward-metadata",
                values={"prompt": prompt, "key": "include[0]['count']", "found": count},
            )
        return Request(count, first.get("color"), first.get("class"))
    number = re.search(rf"\b(?:{'|'.join(NUMBER_WORDS)}|[1-9]\d{{0,8}})\b", prompt, re.IGNORECASE)
    if number is None:
        return None
    word = number[0].lower()
    colour = re.search(rf"\b(?:{'|'.join(COLOUR_WORDS)})\b", prompt, re.IGNORECASE)
    return Request(
        NUMBER_WORDS.index(word) + 1 if word in NUMBER_WORDS else int(word), colour[0].lower() if colour else None
    )


def check_prompts(preview: RunPreview) -> list[str | None]:
    """For each prompt None, or that it requests no number. Raises Tdmr1Error if the metadata has a wrong count."""
    pairs = zip(preview.metadata, preview.prompts, strict=True)
    return [NO_NUMBER if read_request(metadata, prompt) is None else None for metadata, prompt in pairs]


def examples() -> list[RewardExample]:
    """An image of two red squares, with a prompt that matches it and two that do not."""
    image = np.full((32, 32, 3), 230, np.uint8)
    image[4:12, 4:12] = image[18:26, 18:26] = (220, 35, 35)
    prompts = [("two red squares", True), ("three red squares", False), ("one blue square", False)]
    return [RewardExample(image=image, prompt=prompt, good=good) for prompt, good in prompts]


def _find_class(detector: Detector, request: Request, prompt: str) -> str:
    """The detector's class for a request. Raises UnknownClassError if it has none."""
    if request.thing is not None:
        return detector.class_of(request.thing)
    found = detector.class_in(prompt)
    if found is None:
        raise UnknownClassError(
            f"the prompt {prompt!r} mentions no class that the detector knows",
            "name the class in the prompt's metadata: include[0]['class']",
            code="reward-metadata",
            values={"prompt": prompt},
        )
    return found


def _colours_to_count(request: Request | None) -> tuple[str, ...]:
    """The colors of the blobs to count; empty if there is no request or hue does not determine its color."""
    if request is None:
        return ()
    if request.colour is None:
        return tuple(HUE_RANGES)
    return (request.colour,) if request.colour in HUE_RANGES else ()
