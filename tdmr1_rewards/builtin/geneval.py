"""GenEval (arXiv 2310.11513): does an image show the objects, counts, colors and positions that its prompt requests?

The request is the prompt's metadata in GenEval's layout. `include` lists objects with `class`, `count`, and optionally
`color` and `position` (a relation such as "left of", and the index of another entry). `exclude` lists classes of which
the image must show fewer objects than their `count`. `tag` is the task, one of TASKS.

GenEval does not define what happens if several entries of `include` name one class, and its prompts never do. Here the
objects of the class are divided among these entries, those of the requested color first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from statistics import fmean
from typing import Any, Literal

import numpy as np
from pydantic import Field

from tdmr1_rewards.api import RewardBatch, RewardExample, RewardResult
from tdmr1_rewards.builtin.detection.blobs import HUE_RANGES, BlobDetector
from tdmr1_rewards.builtin.detection.colours import COLOUR_WORDS, ClipColours
from tdmr1_rewards.builtin.detection.detections import Box, Detection, Detector, UnknownClassError, strongest
from tdmr1_rewards.builtin.detection.detectors import DetectorChoice, DetectorOptions
from tdmr1_rewards.errors import Tdmr1Error, close_match_hint

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
RELATIONS = ("left of", "right of", "above", "below")
DEFAULT_CHECKPOINT = "facebook/mask2former-swin-small-coco-instance"
"""Mask2Former with a Swin-S backbone on COCO, the architecture behind GenEval's published scores.

The hub lists the license of the weights as "other"; the detectors of `object_count` are alternatives.
"""
DEFAULT_CLIP = "openai/clip-vit-large-patch14"
MIN_FRACTION = 0.5
"""A relation holds if its component of the reduced offset is more than this fraction of the full offset's length."""
NO_REQUEST = "the metadata requests no objects: it has no list `include` or `exclude` in GenEval's layout"


class GenEvalOptions(DetectorOptions):
    """How objects are detected and how the score is computed. The defaults of the detection are GenEval's."""

    score: Literal["strict", "graded", "mixed"] = Field(
        "mixed",
        description="strict: 1 if all conditions are met, else 0, as GenEval reports; graded: the mean over the "
        "conditions of how far each is met (0 to 1); mixed: the mean of both",
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


@dataclass(frozen=True)
class Item:
    """One entry of `include`: at least `count` (1 or more) objects of the class `thing`.

    `position` is one of RELATIONS and the index of another entry.
    """

    thing: str
    count: int
    colour: str | None = None
    position: tuple[str, int] | None = None


@dataclass(frozen=True)
class Request:
    """What an image must show. `limits` maps a class to a number: the image must show fewer objects of the class."""

    tag: str
    include: tuple[Item, ...]
    limits: Mapping[str, int]


@dataclass(frozen=True)
class Condition:
    """One condition of a request: what is requested, what was found, and how far the condition is met (0 to 1)."""

    kind: Literal["count", "colour", "position", "exclude"]
    thing: str
    requested: str
    found: str
    met: float

    def document(self) -> dict[str, Any]:
        """The condition as plain data."""
        return {
            "condition": self.kind,
            "class": self.thing,
            "asked": self.requested,
            "found": self.found,
            "met": self.met,
        }


Objects = Mapping[str, Sequence[Detection]]
"""The detected objects of each class of the request, highest confidence first."""
ColourClassifier = Callable[[Sequence[Detection], str], list[str]]
"""A function from objects and the name of their class to the color of each."""


@dataclass(eq=False)
class GenEval:
    """Scores images by GenEval's rules: 0 to 1, or None if the request cannot be checked.

    A request cannot be checked if the prompt has no metadata, if the detector does not know a class, or if the color
    of a blob is requested that hue does not determine. The details of an image hold the task (`tag`), whether all
    conditions are met (`correct`), every condition, and the boxes of the objects.
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
        conditions = check_conditions(request, objects, self._colour_classifier(image), options.position_margin)
        correct = all(condition.met >= 1 for condition in conditions)
        graded = fmean(condition.met for condition in conditions)
        score = {"strict": float(correct), "graded": graded, "mixed": (correct + graded) / 2}[options.score]
        return score, {
            "tag": request.tag,
            "correct": correct,
            "conditions": [condition.document() for condition in conditions],
            "boxes": [detection.document() for members in objects.values() for detection in members],
        }

    def _colour_classifier(self, image: Any) -> ColourClassifier:
        """Returns the colors that the detector determined, or else CLIP's, for objects of a PIL image or an array."""

        def classify(objects: Sequence[Detection], thing: str) -> list[str]:
            known = [item.colour for item in objects if item.colour is not None]
            if len(known) == len(objects):
                return known
            from PIL import Image

            converted = Image.fromarray(image) if isinstance(image, np.ndarray) else image
            return self._clip.classify(converted, objects, thing)

        return classify


def check_conditions(
    request: Request, objects: Objects, classify_colours: ColourClassifier, position_margin: float
) -> list[Condition]:
    """Every condition of a request, with how far it is met (0 to 1). GenEval requires that all are fully met.

    - count, for each class in `include`: 1 - (missing or surplus objects) / requested, at least 0. `requested` is the
      sum of the class's counts; objects are surplus only from the limit in `exclude` on.
    - colour, for each entry with a color: the objects of that color among its `count` most confident ones / `count`.
    - position, for each entry with a position: the fraction of pairs in the requested relation, over all pairs of the
      `count` most confident objects of this entry and of the other one; 0 if either entry has too few objects.
    - exclude, for each class that only `exclude` names: 1 if the image shows fewer objects than the limit, else 0.
    """
    groups, colours = _assign_objects(request.include, objects, classify_colours)
    requested = Counter[str]()
    for item in request.include:
        requested[item.thing] += item.count
    conditions = [_check_count(thing, count, objects, request.limits.get(thing)) for thing, count in requested.items()]
    for index, item in enumerate(request.include):
        if item.colour is not None:
            conditions.append(_check_colour(item, colours[index]))
        if item.position is not None:
            conditions.append(_check_position(index, request.include, groups, position_margin))
    for thing, limit in request.limits.items():
        if thing not in requested:
            number = len(objects.get(thing, []))
            conditions.append(Condition("exclude", thing, f"fewer than {limit}", str(number), float(number < limit)))
    return conditions


def relations(a: Box, b: Box, margin: float) -> set[str]:
    """The relations of box `a` to box `b`: none, one or two of RELATIONS.

    The offset of the centers is reduced along each axis by `margin` times the summed sizes of the boxes. A relation
    holds if its component of the reduced offset is more than half of the length of the full offset.
    """
    offsets = []
    for axis in (0, 1):
        offset = (a[axis] + a[axis + 2] - b[axis] - b[axis + 2]) / 2
        sizes = abs(a[axis + 2] - a[axis]) + abs(b[axis + 2] - b[axis])
        offsets.append((offset, np.sign(offset) * max(abs(offset) - margin * sizes, 0.0)))
    (x, x_reduced), (y, y_reduced) = offsets
    if max(abs(x_reduced), abs(y_reduced)) < 1e-3:
        return set()
    length = np.hypot(x, y)
    components = {"left of": -x_reduced, "right of": x_reduced, "above": -y_reduced, "below": y_reduced}
    return {relation for relation, component in components.items() if component / length > MIN_FRACTION}


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


def read_request(metadata: Mapping[str, Any], prompt: str) -> Request | None:
    """The request in metadata in GenEval's layout, or None if `include` and `exclude` are missing or empty.

    Raises Tdmr1Error, with the prompt in the message, if an entry does not follow the layout.
    """
    include, exclude = metadata.get("include") or [], metadata.get("exclude") or []
    if not include and not exclude:
        return None
    try:
        items = tuple(_read_item(entry, len(include), index) for index, entry in enumerate(include))
        limits: dict[str, int] = {}
        for entry in exclude:
            limits[str(entry["class"])] = min(_read_count(entry), limits.get(str(entry["class"]), 1 << 30))
        _check_limits(items, limits)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        problem = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise Tdmr1Error(
            f"prompt {prompt!r}: the metadata does not follow GenEval's layout: {problem}",
            'write {"include": [{"class": "dog", "count": 1, "color": "red", "position": ["left of", 1]}, …], …}',
            code="reward-metadata",
            values={"prompt": prompt, "problem": problem},
        ) from error
    return Request(str(metadata.get("tag", "unknown")), items, limits)


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


def _assign_objects(
    include: Sequence[Item], objects: Objects, classify_colours: ColourClassifier
) -> tuple[list[list[Detection]], list[list[str]]]:
    """For each entry, the objects that it is checked with, at most its count, and their colors.

    The colors are empty if no entry of the class has a color. If several entries name one class, each first takes the
    objects of its own color, then they take the remaining objects in order.
    """
    groups: list[list[Detection]] = [[] for _ in include]
    colours: list[list[str]] = [[] for _ in include]
    for thing in dict.fromkeys(item.thing for item in include):
        entries = [index for index, item in enumerate(include) if item.thing == thing]
        coloured = any(include[index].colour for index in entries)
        # The only entry of a class takes the most confident objects, whatever their color.
        pool = list(objects.get(thing, []))[: include[entries[0]].count if len(entries) == 1 else None]
        left = list(zip(pool, classify_colours(pool, thing) if coloured and pool else [""] * len(pool), strict=True))
        taken: dict[int, list[tuple[Detection, str]]] = {}
        for index in entries:
            matching = [pair for pair in left if pair[1] == include[index].colour]
            taken[index] = matching[: include[index].count]
            left = [pair for pair in left if pair not in taken[index]]
        rest = iter(left)
        for index in entries:
            taken[index] += islice(rest, include[index].count - len(taken[index]))
            groups[index] = [detection for detection, _ in taken[index]]
            colours[index] = [colour for _, colour in taken[index] if coloured]
    return groups, colours


def _check_count(thing: str, requested: int, objects: Objects, limit: int | None) -> Condition:
    """The condition on the number of objects of a class in `include`; `limit` is its count in `exclude`."""
    found = len(objects.get(thing, []))
    surplus = 0 if limit is None else max(0, found - limit + 1)
    wrong = requested - found if found < requested else surplus
    text = f"at least {requested}" + (f" and fewer than {limit}" if limit is not None else "")
    return Condition("count", thing, text, str(found), max(0.0, 1 - wrong / requested))


def _check_colour(item: Item, colours: Sequence[str]) -> Condition:
    """The condition on the color of an entry, whose objects have these `colours`."""
    found = ", ".join(f"{number} {name}" for name, number in sorted(Counter(colours).items()))
    met = sum(colour == item.colour for colour in colours) / item.count
    return Condition("colour", item.thing, f"{item.count} {item.colour}", found or "none", met)


def _check_position(
    index: int, include: Sequence[Item], groups: Sequence[Sequence[Detection]], margin: float
) -> Condition:
    """The condition on the position of entry `index`; `groups` are the objects of all entries."""
    item = include[index]
    assert item.position is not None
    relation, target = item.position
    requested = f"{relation} {include[target].thing}"
    if len(groups[index]) < item.count or len(groups[target]) < include[target].count:
        return Condition("position", item.thing, requested, "too few objects", 0.0)
    pairs = [relations(one.box, other.box, margin) for one in groups[index] for other in groups[target]]
    found = "; ".join(sorted({" and ".join(sorted(pair)) or "no relation" for pair in pairs}))
    return Condition("position", item.thing, requested, found, fmean(relation in pair for pair in pairs))


def _read_item(entry: Mapping[str, Any], entries: int, index: int) -> Item:
    """Entry `index` of the `entries` in `include`. Raises ValueError or KeyError if it does not follow the layout."""
    colour = entry.get("color")
    if colour is not None and colour not in COLOUR_WORDS:
        raise ValueError(f"entry {index}: 'color' is {colour!r} ({close_match_hint(str(colour), COLOUR_WORDS)})")
    position = entry.get("position")
    if position is not None:
        relation, target = position
        if relation not in RELATIONS:
            raise ValueError(f"entry {index}: 'position' is {relation!r}, expected one of {', '.join(RELATIONS)}")
        if isinstance(target, bool) or not isinstance(target, int) or not 0 <= target < entries or target == index:
            raise ValueError(
                f"entry {index}: 'position' refers to entry {target!r}, expected the index of another of the "
                f"{entries} entries, from 0"
            )
        position = (relation, target)
    return Item(str(entry["class"]), _read_count(entry), colour, position)


def _read_count(entry: Mapping[str, Any]) -> int:
    """The count of an entry, by default 1. Raises ValueError if it is not an integer of at least 1."""
    count = entry.get("count", 1)
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"the 'count' of {entry['class']!r} is {count!r}, expected an integer of at least 1")
    return count


def _check_limits(items: Sequence[Item], limits: Mapping[str, int]) -> None:
    """Raise ValueError if `include` requests as many objects of a class as `exclude` forbids."""
    for item in items:
        if item.count >= limits.get(item.thing, item.count + 1):
            raise ValueError(
                f"'include' requests {item.count} {item.thing!r}, but 'exclude' requires fewer than "
                f"{limits[item.thing]}"
            )
