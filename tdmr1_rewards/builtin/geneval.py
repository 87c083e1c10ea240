"""GenEval's protocol (arXiv 2310.11513): is a picture composed as its prompt asks, thing by thing?

What is asked for comes from the prompt's metadata in GenEval's layout: `include` lists objects with a `class`, a
`count` and perhaps a `color` and a `position` ("left of", index of another entry), `exclude` classes of which there
must be fewer than their `count`. Six tasks are told apart by the `tag`.

Where GenEval leaves a case open, this is done: a class that several entries of `include` name (GenEval never asks so)
is shared out among them, to each the objects of its own colour first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
"""Mask2Former with a Swin-S backbone on COCO, the architecture that GenEval's published scores were taken with.

Its page on the hub gives the licence of the weights as "other"; the detectors of `object_count` are alternatives.
"""
DEFAULT_CLIP = "openai/clip-vit-large-patch14"
MIN_SHARE = 0.5
"""A direction counts where its share of the offset's length is above this: two can."""


class GenEvalOptions(DetectorOptions):
    """How objects are found and the score is made; the defaults are GenEval's."""

    score: Literal["strict", "graded", "mixed"] = Field(
        "mixed",
        description="strict: 1 if all is as asked, else 0, as GenEval reports it; graded: the mean over the conditions "
        "of how far each is met; mixed: the mean of both",
    )
    threshold: float = Field(0.3, ge=0, lt=1, description="objects that the detector is no surer of are not there")
    counting_threshold: float = Field(0.9, ge=0, lt=1, description="the same for prompts of the counting task")
    max_per_class: int = Field(16, ge=1, description="only so many objects of a class are looked at, the surest")
    position_margin: float = Field(
        0.1, ge=0, description="an offset counts beyond this share of both objects' sizes added up, along each axis"
    )
    colour_model: str = Field(
        DEFAULT_CLIP, description="CLIP that tells a checkpoint's objects' colours; blobs have theirs from hue"
    )


@dataclass(frozen=True)
class Item:
    """One entry of `include`: at least `count` (1 or more) of a class, of a colour, in a relation to another entry."""

    thing: str
    count: int
    colour: str | None = None
    position: tuple[str, int] | None = None


@dataclass(frozen=True)
class Request:
    """What a picture must hold; `limits` says of which classes there must be fewer than how many."""

    tag: str
    include: tuple[Item, ...]
    limits: Mapping[str, int]


@dataclass(frozen=True)
class Condition:
    """One thing that was asked for, what was found instead or not, and how far that meets it, 0 to 1."""

    kind: Literal["count", "colour", "position", "exclude"]
    thing: str
    asked: str
    found: str
    met: float

    @property
    def told(self) -> dict[str, Any]:
        """The condition as plain data."""
        return {"condition": self.kind, "class": self.thing, "asked": self.asked, "found": self.found, "met": self.met}


Objects = Mapping[str, Sequence[Detection]]
"""The objects that count of each class, surest first; classes are named as in the request."""
ColourNamer = Callable[[Sequence[Detection], str], list[str]]
"""The colours of some objects of a class."""


class GenEval:
    """Judges composition by GenEval's rules. Scores are 0 to 1, and None where the request can't be judged.

    That is so where a prompt has no metadata, where the detector doesn't know a class, and where a blob's colour is
    asked for that is no hue. `details` hold the task (`tag`), whether all is right (`correct`), every condition, and
    the boxes that were looked at.
    """

    def __init__(self, options: GenEvalOptions) -> None:
        self._options = options
        floor = min(options.threshold, options.counting_threshold)
        self._detectors = DetectorChoice(options, DEFAULT_CHECKPOINT, floor)
        self._clip = ClipColours(options.colour_model)
        self._knows_some = False

    def setup(self, device: str) -> None:
        """Load the checkpoint that the options name; the one of `auto` waits for a large picture."""
        self._detectors.set_up(device)
        self._clip.set_up(device)

    def __call__(self, batch: RewardBatch) -> RewardResult:
        """Score images of any size.

        Raises Tdmr1Error for metadata that are not in GenEval's layout, if a network can't be loaded, or if the
        detector knows no class of the batch and none of any before it.
        """
        detector = self._detectors.for_images(batch.images)
        requests = [read_request(*pair) for pair in zip(batch.metadata, batch.prompts, strict=True)]
        judged = [self._judgeable(detector, request) for request in requests]
        self._refuse_unknown([answer for answer in judged if isinstance(answer, Tdmr1Error)], judged)
        classes = [list(answer.values()) if isinstance(answer, dict) else [] for answer in judged]
        found = detector.detect(batch.images, classes)
        scores: list[float | None] = []
        details: list[dict[str, Any]] = []
        for image, request, answer, detections in zip(batch.images, requests, judged, found, strict=True):
            if request is None or not isinstance(answer, dict):
                scores.append(None)
                details.append({"reason": answer.message if isinstance(answer, Tdmr1Error) else NO_REQUEST})
                continue
            score, told = self._judge(image, request, answer, detections)
            scores.append(score)
            details.append(told)
        return RewardResult(scores, details)

    def _judgeable(self, detector: Detector, request: Request | None) -> dict[str, str] | Tdmr1Error | None:
        """The detector's class for each that the request names; or why it can't be judged."""
        if request is None:
            return None
        try:
            classes = {name: detector.class_of(name) for name in _classes(request)}
        except UnknownClassError as error:
            return error
        colours = [item.colour for item in request.include if item.colour is not None]
        for colour in colours:
            if isinstance(detector, BlobDetector) and colour not in HUE_RANGES:
                return Tdmr1Error(f"hue cannot tell {colour}")
        return classes

    def _refuse_unknown(self, problems: Sequence[Tdmr1Error], judged: Sequence[object]) -> None:
        self._knows_some |= any(isinstance(answer, dict) for answer in judged)
        for problem in problems:
            if isinstance(problem, UnknownClassError) and not self._knows_some:
                raise problem

    def _judge(
        self, image: Any, request: Request, classes: Mapping[str, str], detections: Sequence[Detection]
    ) -> tuple[float, dict[str, Any]]:
        options = self._options
        kept = strongest(
            detections,
            threshold=options.counting_threshold if request.tag == "counting" else options.threshold,
            limit=options.max_per_class,
            max_overlap=options.max_overlap,
        )
        objects = {name: kept.get(label, []) for name, label in classes.items()}
        conditions = judge(request, objects, self._colour_namer(image), options.position_margin)
        correct = all(condition.met >= 1 for condition in conditions)
        graded = fmean(condition.met for condition in conditions)
        score = {"strict": float(correct), "graded": graded, "mixed": (correct + graded) / 2}[options.score]
        return score, {
            "tag": request.tag,
            "correct": correct,
            "conditions": [condition.told for condition in conditions],
            "boxes": [detection.told for members in objects.values() for detection in members],
        }

    def _colour_namer(self, image: Any) -> ColourNamer:
        def name(objects: Sequence[Detection], thing: str) -> list[str]:
            known = [item.colour for item in objects if item.colour is not None]
            if len(known) == len(objects):
                return known
            from PIL import Image

            picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
            return self._clip.name(picture, objects, thing)

        return name


NO_REQUEST = "the prompt's metadata ask for nothing: GenEval's layout has a list `include`"


def judge(request: Request, objects: Objects, name_colours: ColourNamer, position_margin: float) -> list[Condition]:
    """Every condition of a request, met from 0 to 1; GenEval calls a picture correct where all are wholly met.

    - count, of each class in `include`: 1 - (objects missing or too many) / asked, at least 0, where asked is the sum
      of its counts, and too many are those that `exclude` forbids;
    - colour, of each entry with one: of the `count` surest objects, how many have it / asked;
    - position, of each entry with one: of the pairs of its `count` surest objects and those of the other entry, the
      share that lie so; 0 where either entry has too few objects;
    - exclude, of each class that is in `exclude` only: 1 or 0.
    """
    groups, colours = _share_out(request.include, objects, name_colours)
    asked = Counter[str]()
    for item in request.include:
        asked[item.thing] += item.count
    conditions = [_count(thing, number, objects, request.limits.get(thing)) for thing, number in asked.items()]
    for index, item in enumerate(request.include):
        if item.colour is not None:
            right = colours[index].count(item.colour)
            found = ", ".join(f"{number} {name}" for name, number in sorted(Counter(colours[index]).items()))
            conditions.append(
                Condition("colour", item.thing, f"{item.count} {item.colour}", found or "none", right / item.count)
            )
        if item.position is not None:
            conditions.append(_position(index, request.include, groups, position_margin))
    for thing, limit in request.limits.items():
        if thing not in asked:
            number = len(objects.get(thing, []))
            conditions.append(Condition("exclude", thing, f"fewer than {limit}", str(number), float(number < limit)))
    return conditions


def relations(a: Box, b: Box, margin: float) -> set[str]:
    """How box `a` lies to box `b`: none, one or two of RELATIONS.

    The offset of the centres is shortened along each axis by `margin` times both boxes' sizes added up; a direction
    counts where what is left is more than half of the whole offset's length.
    """
    offsets = []
    for axis in (0, 1):
        offset = (a[axis] + a[axis + 2] - b[axis] - b[axis + 2]) / 2
        sizes = abs(a[axis + 2] - a[axis]) + abs(b[axis + 2] - b[axis])
        offsets.append((offset, np.sign(offset) * max(abs(offset) - margin * sizes, 0.0)))
    (x, x_left), (y, y_left) = offsets
    if max(abs(x_left), abs(y_left)) < 1e-3:
        return set()
    length = np.hypot(x, y)
    shares = {"left of": -x_left, "right of": x_left, "above": -y_left, "below": y_left}
    return {relation for relation, part in shares.items() if part / length > MIN_SHARE}


def task_means(scores: Sequence[float | None], details: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The mean score of each task among judged images, in GenEval's order, and `overall`: the mean of those means.

    `details` are those of the reward, one an image. Without a judged image the answer is empty.
    """
    by_task: dict[str, list[float]] = {}
    for score, told in zip(scores, details, strict=True):
        if score is not None:
            by_task.setdefault(told["tag"], []).append(score)
    tags = [tag for tag in TASKS if tag in by_task] + sorted(by_task.keys() - set(TASKS))
    means = {tag: fmean(by_task[tag]) for tag in tags}
    return {**means, "overall": fmean(means.values())} if means else {}


def read_request(metadata: Mapping[str, Any], prompt: str) -> Request | None:
    """What metadata in GenEval's layout ask for, or None where they ask for nothing.

    Raises Tdmr1Error, naming the prompt, for entries that are not in the layout.
    """
    include, exclude = metadata.get("include") or [], metadata.get("exclude") or []
    if not include and not exclude:
        return None
    try:
        items = tuple(_item(entry, len(include), index) for index, entry in enumerate(include))
        limits: dict[str, int] = {}
        for entry in exclude:
            limits[str(entry["class"])] = min(_number(entry), limits.get(str(entry["class"]), 1 << 30))
        _check_limits(items, limits)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        problem = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise Tdmr1Error(
            f"the metadata of prompt {prompt!r} are not in GenEval's layout: {problem}",
            'write {"include": [{"class": "dog", "count": 1, "color": "red", "position": ["left of", 0]}], …}',
        ) from error
    return Request(str(metadata.get("tag", "unknown")), items, limits)


def examples() -> list[RewardExample]:
    """A red disc left of a blue square, and what it is not."""
    image = np.full((32, 32, 3), 230, np.uint8)
    y, x = np.mgrid[:32, :32] + 0.5
    image[np.hypot(x - 8, y - 16) <= 5] = (220, 35, 35)
    image[12:20, 20:28] = (35, 65, 220)
    things = {"circle": "red", "square": "blue"}
    asked = [("circle", "left of", "square", True), ("circle", "right of", "square", False)]
    made = []
    for first, relation, second, good in asked:
        include = [
            {"class": second, "count": 1, "color": things[second]},
            {"class": first, "count": 1, "color": things[first], "position": [relation, 0]},
        ]
        prompt = f"a {things[first]} {first} {relation} a {things[second]} {second}"
        metadata = {"tag": "position", "include": include, "exclude": [], "prompt": prompt}
        made.append(RewardExample(image=image, prompt=prompt, good=good, metadata=metadata))
    return made


def _classes(request: Request) -> list[str]:
    return list(dict.fromkeys([*(item.thing for item in request.include), *request.limits]))


def _share_out(
    include: Sequence[Item], objects: Objects, name_colours: ColourNamer
) -> tuple[list[list[Detection]], list[list[str]]]:
    """The objects that each entry is judged by, at most its count, and their colours where one is asked for."""
    groups: list[list[Detection]] = [[] for _ in include]
    colours: list[list[str]] = [[] for _ in include]
    for thing in dict.fromkeys(item.thing for item in include):
        sharers = [index for index, item in enumerate(include) if item.thing == thing]
        coloured = any(include[index].colour for index in sharers)
        # An entry that has its class for itself gets the surest objects, whatever their colour.
        pool = list(objects.get(thing, []))[: include[sharers[0]].count if len(sharers) == 1 else None]
        left = list(zip(pool, name_colours(pool, thing) if coloured and pool else [""] * len(pool), strict=True))
        taken: dict[int, list[tuple[Detection, str]]] = {}
        for index in sharers:
            own = [pair for pair in left if pair[1] == include[index].colour]
            taken[index] = own[: include[index].count]
            left = [pair for pair in left if pair not in taken[index]]
        rest = iter(left)
        for index in sharers:
            taken[index] += islice(rest, include[index].count - len(taken[index]))
            groups[index] = [detection for detection, _ in taken[index]]
            colours[index] = [colour for _, colour in taken[index] if coloured]
    return groups, colours


def _count(thing: str, asked: int, objects: Objects, limit: int | None) -> Condition:
    found = len(objects.get(thing, []))
    wrong = asked - found if found < asked else max(0, found - limit + 1) if limit is not None else 0
    told = f"at least {asked}" + (f" and fewer than {limit}" if limit is not None else "")
    return Condition("count", thing, told, str(found), max(0.0, 1 - wrong / asked))


def _position(index: int, include: Sequence[Item], groups: Sequence[Sequence[Detection]], margin: float) -> Condition:
    item = include[index]
    assert item.position is not None
    relation, target = item.position
    asked = f"{relation} {include[target].thing}"
    if len(groups[index]) < item.count or len(groups[target]) < include[target].count:
        return Condition("position", item.thing, asked, "too few objects", 0.0)
    seen = [relations(one.box, other.box, margin) for one in groups[index] for other in groups[target]]
    found = "; ".join(sorted({" and ".join(sorted(each)) or "no relation" for each in seen}))
    return Condition("position", item.thing, asked, found, fmean(relation in each for each in seen))


def _item(entry: Mapping[str, Any], entries: int, index: int) -> Item:
    colour = entry.get("color")
    if colour is not None and colour not in COLOUR_WORDS:
        raise ValueError(f"'color' is {colour!r} ({close_match_hint(str(colour), COLOUR_WORDS)})")
    position = entry.get("position")
    if position is not None:
        relation, target = position
        if relation not in RELATIONS:
            raise ValueError(f"'position' is {relation!r}, which is none of {', '.join(RELATIONS)}")
        if isinstance(target, bool) or not isinstance(target, int) or not 0 <= target < entries or target == index:
            raise ValueError(f"'position' refers to entry {target!r} of {entries}, and is itself entry {index}")
        position = (relation, target)
    return Item(str(entry["class"]), _number(entry), colour, position)


def _number(entry: Mapping[str, Any]) -> int:
    count = entry.get("count", 1)
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"a count of {count!r} {entry['class']!r}, which is no whole number of at least 1")
    return count


def _check_limits(items: Sequence[Item], limits: Mapping[str, int]) -> None:
    for item in items:
        if item.count >= limits.get(item.thing, item.count + 1):
            raise ValueError(f"{item.count} {item.thing!r} are asked for and fewer than {limits[item.thing]}")
