"""GenEval (arXiv 2310.11513): does an image show the objects, counts, colors and positions that its prompt requests?

`geneval_request` reads the request in the prompt's metadata, `geneval_conditions` checks its conditions and
`geneval_published` computes the score of the published training. This file detects the objects and is the reward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean
from typing import Any, Literal

import numpy as np
from pydantic import Field

from tdmr1_rewards.api import RewardBatch, RewardExample, RewardResult, RunPreview
from tdmr1_rewards.builtin.detection.blobs import HUE_RANGES, BlobDetector
from tdmr1_rewards.builtin.detection.colours import ClipColours
from tdmr1_rewards.builtin.detection.detections import Detection, Detector, UnknownClassError, strongest
from tdmr1_rewards.builtin.detection.detectors import DetectorChoice, DetectorOptions
from tdmr1_rewards.builtin.geneval_conditions import ColourClassifier, check_conditions, relations
from tdmr1_rewards.builtin.geneval_published import score_as_published
from tdmr1_rewards.builtin.geneval_request import RELATIONS, TASKS, Item, Request, read_request

__all__ = [
    "RELATIONS",
    "TASKS",
    "GenEval",
    "GenEvalOptions",
    "Item",
    "Request",
    "UnknownClassError",
    "check_conditions",
    "examples",
    "read_request",
    "relations",
    "task_means",
]

DEFAULT_CHECKPOINT = "facebook/mask2former-swin-small-coco-instance"
"""Mask2Former with a Swin-S backbone on COCO, the architecture behind GenEval's published scores.

The hub lists the license of the weights as "other"; the detectors of `object_count` are alternatives.
"""
DEFAULT_CLIP = "openai/clip-vit-large-patch14"
NO_REQUEST = "the metadata requests no objects: it has no list `include` or `exclude` in GenEval's layout"


class GenEvalOptions(DetectorOptions):
    """How objects are detected and how the score is computed. The defaults of the detection are GenEval's."""

    score: Literal["published", "strict", "exact", "graded", "mixed"] = Field(
        "mixed",
        description="published: the training score of TDM-R1, at most 1, negative for many surplus objects; strict: 1 "
        "if all conditions are met, else 0, GenEval's official verdict; exact: 1 if each entry of `include` has "
        "exactly its count, its color and its position, else 0; graded: the mean over the conditions of how far each "
        "is met (0 to 1); mixed: the mean of strict and graded",
    )
    repeated_classes: Literal["divided", "independent"] = Field(
        "divided",
        description="if several entries of `include` name one class, as no prompt of GenEval does: divided: its "
        "objects are divided among them, by color; independent: each entry is checked alone, as in GenEval's script; "
        "`published` and `exact` are always independent",
    )
    threshold: float = Field(0.3, ge=0, lt=1, description="objects count above this confidence")
    counting_threshold: float = Field(
        0.9, ge=0, lt=1, description="objects count above this confidence in prompts of the counting task"
    )
    max_per_class: int = Field(
        16, ge=1, description="use at most this many objects of each class, the most confident ones"
    )
    position_margin: float = Field(
        0.1,
        ge=0,
        description="margin of a relation along each axis, as a fraction of the summed sizes of the two boxes; a "
        "smaller offset is ignored",
    )
    colour_model: str = Field(
        DEFAULT_CLIP, description="CLIP model that classifies the color of a checkpoint's objects; blobs use their hue"
    )


@dataclass(eq=False)
class GenEval:
    """Scores images by GenEval's rules: at most 1, or None if the request cannot be checked.

    Scores are 0 to 1, except that `published` may be negative. A request cannot be checked if the prompt has no
    metadata, if the detector does not know a class, or if the color of a blob is requested that hue does not determine.
    The details of an image hold the task (`tag`), whether all conditions are met (`correct`), every condition, and the
    boxes of the objects; with `published` and `exact` also the exact verdict (`exact`) and the `terms` of the published
    score.
    """

    options: GenEvalOptions
    _any_class_known: bool = field(default=False, init=False)

    @cached_property
    def _detectors(self) -> DetectorChoice:
        floor = min(self.options.threshold, self.options.counting_threshold)
        return DetectorChoice(self.options, DEFAULT_CHECKPOINT, floor)

    @cached_property
    def _clip(self) -> ClipColours:
        return ClipColours(self.options.colour_model)

    def setup(self, device: str) -> None:
        """Load the checkpoint if the options name one; `auto` loads its checkpoint at the first large image."""
        self._detectors.set_up(device)
        self._clip.set_up(device)

    def __call__(self, batch: RewardBatch) -> RewardResult:
        """Score images of any size.

        Raises Tdmr1Error if metadata is not in GenEval's layout, if a network cannot be loaded, or if the detector
        knows the classes of no request in this batch or an earlier one.
        """
        detector = self._detectors.for_images(batch.images)
        requests = [read_request(*pair) for pair in zip(batch.metadata, batch.prompts, strict=True)]
        matches = [_match_classes(detector, request) for request in requests]
        self._check_known(matches)
        classes = [list(match.values()) if isinstance(match, dict) else [] for match in matches]
        found = detector.detect(batch.images, classes)
        scores: list[float | None] = []
        details: list[dict[str, Any]] = []
        for image, request, match, detections in zip(batch.images, requests, matches, found, strict=True):
            if request is None or not isinstance(match, dict):
                scores.append(None)
                details.append({"reason": str(match)})
                continue
            score, image_details = self._score(image, request, match, detections)
            scores.append(score)
            details.append(image_details)
        return RewardResult(scores, details)

    def _check_known(self, matches: Sequence[object]) -> None:
        """Raise the first UnknownClassError unless a request of this batch or an earlier one could be checked."""
        self._any_class_known |= any(isinstance(match, dict) for match in matches)
        for match in matches:
            if isinstance(match, UnknownClassError) and not self._any_class_known:
                raise match

    def _score(
        self, image: Any, request: Request, classes: Mapping[str, str], detections: Sequence[Detection]
    ) -> tuple[float, dict[str, Any]]:
        """The score and the details of one image; `classes` maps the request's class names to the detector's."""
        options = self.options
        kept = strongest(
            detections,
            threshold=options.counting_threshold if request.tag == "counting" else options.threshold,
            limit=options.max_per_class,
            max_overlap=options.max_overlap,
        )
        objects = {name: kept.get(label, []) for name, label in classes.items()}
        classify, margin = self._colour_classifier(image), options.position_margin
        divided = options.repeated_classes == "divided"
        conditions = check_conditions(request, objects, classify, margin, divided=divided)
        correct = all(condition.met >= 1 for condition in conditions)
        graded = fmean(condition.met for condition in conditions)
        details = {
            "tag": request.tag,
            "correct": correct,
            "conditions": [condition.document() for condition in conditions],
            "boxes": [detection.document() for members in objects.values() for detection in members],
        }
        if options.score in ("published", "exact"):
            published = score_as_published(request, objects, classify, margin)
            details |= {"exact": published.exact, "terms": list(published.terms)}
            return (published.value if options.score == "published" else float(published.exact)), details
        return {"strict": float(correct), "graded": graded, "mixed": (correct + graded) / 2}[options.score], details

    def _colour_classifier(self, image: Any) -> ColourClassifier:
        """Returns the colors that the detector determined, or else CLIP's, for objects of a PIL image or an array.

        The same objects of a class are classified once.
        """
        seen: dict[tuple[str, tuple[int, ...]], list[str]] = {}

        def classify(objects: Sequence[Detection], thing: str) -> list[str]:
            key = thing, tuple(map(id, objects))
            if key not in seen:
                seen[key] = determine(objects, thing)
            return seen[key]

        def determine(objects: Sequence[Detection], thing: str) -> list[str]:
            known = [item.colour for item in objects if item.colour is not None]
            if len(known) == len(objects):
                return known
            from PIL import Image

            converted = Image.fromarray(image) if isinstance(image, np.ndarray) else image
            return self._clip.classify(converted, objects, thing)

        return classify


def task_means(scores: Sequence[float | None], details: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The mean score of each task in GenEval's order, and `overall`, the mean of these means.

    `scores` and `details` are those of a RewardResult of GenEval. Images without a score are skipped; if no image has
    a score, the result is empty.
    """
    by_task: dict[str, list[float]] = {}
    for score, image_details in zip(scores, details, strict=True):
        if score is not None:
            by_task.setdefault(image_details["tag"], []).append(score)
    tags = [tag for tag in TASKS if tag in by_task] + sorted(by_task.keys() - set(TASKS))
    means = {tag: fmean(by_task[tag]) for tag in tags}
    return {**means, "overall": fmean(means.values())} if means else {}


def examples() -> list[RewardExample]:
    """An image of a red disc left of a blue square, with metadata that matches it and with the opposite relation."""
    image = np.full((32, 32, 3), 230, np.uint8)
    y, x = np.mgrid[:32, :32] + 0.5
    image[np.hypot(x - 8, y - 16) <= 5] = (220, 35, 35)
    image[12:20, 20:28] = (35, 65, 220)
    made = []
    for relation, good in (("left of", True), ("right of", False)):
        include = [
            {"class": "square", "count": 1, "color": "blue"},
            {"class": "circle", "count": 1, "color": "red", "position": [relation, 0]},
        ]
        prompt = f"a red circle {relation} a blue square"
        metadata = {"tag": "position", "include": include, "exclude": [], "prompt": prompt}
        made.append(RewardExample(image=image, prompt=prompt, good=good, metadata=metadata))
    return made


def check_prompts(preview: RunPreview) -> list[str | None]:
    """For each prompt None, or that it requests no object. Raises Tdmr1Error for metadata in another layout."""
    pairs = zip(preview.metadata, preview.prompts, strict=True)
    return [NO_REQUEST if read_request(metadata, prompt) is None else None for metadata, prompt in pairs]


def _match_classes(detector: Detector, request: Request | None) -> dict[str, str] | UnknownClassError | str:
    """The detector's name of each class of a request; or, if the request cannot be checked, the reason."""
    if request is None:
        return NO_REQUEST
    names = dict.fromkeys([*(item.thing for item in request.include), *request.limits])
    try:
        classes = {name: detector.class_of(name) for name in names}
    except UnknownClassError as error:
        return error
    if isinstance(detector, BlobDetector):
        for item in request.include:
            if item.colour is not None and item.colour not in HUE_RANGES:
                return f"hue does not determine the color {item.colour}"
    return classes
