"""The conditions of a GenEval request, how far an image meets each, and GenEval's official verdict (all fully met).

The verdict follows the official script, evaluation/evaluate_images.py of djghosh13/geneval: colors and positions are
checked for the most confident objects only, and a surplus matters only if `exclude` limits it. Two extensions, which
change no verdict that the script can give: a position may refer to a later entry (the script raises IndexError), and
entries of one class may share its objects, see `divided`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import fmean
from typing import Any, Literal

import numpy as np

from tdmr1_rewards.builtin.detection.detections import Box, Detection
from tdmr1_rewards.builtin.geneval_request import Item, Request

MIN_FRACTION = 0.5
"""A relation holds if its component of the reduced offset is more than this fraction of the full offset's length."""


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


def check_conditions(
    request: Request,
    objects: Objects,
    classify_colours: ColourClassifier,
    position_margin: float,
    *,
    divided: bool = True,
) -> list[Condition]:
    """Every condition of a request, with how far it is met (0 to 1). GenEval requires that all are fully met.

    `divided` matters only if several entries of `include` name one class, which no prompt of GenEval does. With it,
    the objects of the class are divided among these entries, those of the requested color first. Without it, each
    entry is checked alone, with the same most confident objects, as the official script does: a red and a blue dog
    then contradict each other.

    - count, for each class in `include`: 1 - (missing or surplus objects) / requested, at least 0. `requested` is the
      sum of the class's counts if `divided`, else there is one condition for each entry. Objects are surplus only from
      the limit in `exclude` on.
    - colour, for each entry with a color: the objects of that color among its `count` most confident ones / `count`.
    - position, for each entry with a position: the fraction of pairs in the requested relation, over all pairs of the
      `count` most confident objects of this entry and of the other one; 0 if either entry has too few objects.
    - exclude, for each class that only `exclude` names: 1 if the image shows fewer objects than the limit, else 0.
    """
    assign = _divide_objects if divided else _select_objects
    groups, colours = assign(request.include, objects, classify_colours)
    requested = [(item.thing, item.count) for item in request.include]
    if divided:
        totals = Counter[str]()
        for thing, count in requested:
            totals[thing] += count
        requested = list(totals.items())
    conditions = [_check_count(thing, count, objects, request.limits.get(thing)) for thing, count in requested]
    for index, item in enumerate(request.include):
        if item.colour is not None:
            conditions.append(_check_colour(item, colours[index]))
        if item.position is not None:
            conditions.append(_check_position(index, request.include, groups, position_margin))
    for thing, limit in request.limits.items():
        if all(item.thing != thing for item in request.include):
            number = len(objects.get(thing, []))
            conditions.append(Condition("exclude", thing, f"fewer than {limit}", str(number), float(number < limit)))
    return conditions


def relations(a: Box, b: Box, margin: float) -> set[str]:
    """The relations of box `a` to box `b`: none, one or two of RELATIONS.

    The offset of the centers is reduced along each axis by `margin` times the summed sizes of the boxes; the size is
    right - left and bottom - top, without a pixel more. A relation holds if its component of the reduced offset is more
    than half of the length of the full offset. This is the official script's rule, in double precision.
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


def _select_objects(
    include: Sequence[Item], objects: Objects, classify_colours: ColourClassifier
) -> tuple[list[list[Detection]], list[list[str]]]:
    """For each entry, the most confident objects of its class, at most its count, and their colors.

    The colors are empty if the entry has no color.
    """
    groups = [list(objects.get(item.thing, []))[: item.count] for item in include]
    colours = [
        classify_colours(group, item.thing) if item.colour is not None and group else []
        for item, group in zip(include, groups, strict=True)
    ]
    return groups, colours


def _divide_objects(
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
