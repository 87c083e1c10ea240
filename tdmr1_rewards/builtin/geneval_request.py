"""The request of a prompt in GenEval's layout (arXiv 2310.11513): which objects an image must show.

The metadata of a prompt hold two lists. `include` lists objects with `class`, `count`, and optionally `color` and
`position` (a relation such as "left of", and the index of another entry). `exclude` lists classes of which the image
must show fewer objects than their `count`. `tag` is the task, one of TASKS. The lists may contradict each other: the
official script accepts such a request, and no image can meet it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tdmr1_rewards.builtin.detection.colours import COLOUR_WORDS
from tdmr1_rewards.errors import Tdmr1Error, close_match_hint

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
RELATIONS = ("left of", "right of", "above", "below")


@dataclass(frozen=True)
class Item:
    """One entry of `include`: at least `count` (1 or more) objects of the class `thing`.

    `colour` is one of COLOUR_WORDS. `position` is one of RELATIONS and the index of another entry, from 0.
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


def read_request(metadata: Mapping[str, Any], prompt: str) -> Request | None:
    """The request in metadata in GenEval's layout, or None if `include` and `exclude` are missing or empty.

    If `exclude` names a class more than once, the lowest count is the limit. A missing count is 1, and a `color` or
    `position` of None is absent. Raises Tdmr1Error (code reward-metadata), with the prompt in the message, if an entry
    does not follow the layout.
    """
    include, exclude = metadata.get("include") or [], metadata.get("exclude") or []
    if not include and not exclude:
        return None
    try:
        items = tuple(_read_item(entry, len(include), index) for index, entry in enumerate(include))
        limits: dict[str, int] = {}
        for entry in exclude:
            limits[str(entry["class"])] = min(_read_count(entry), limits.get(str(entry["class"]), 1 << 30))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        problem = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise Tdmr1Error(
            f"prompt {prompt!r}: the metadata does not follow GenEval's layout: {problem}",
            'write {"include": [{"class": "dog", "count": 1, "color": "red", "position": ["left of", 1]}, …], …}',
            code="reward-metadata",
            values={"prompt": prompt, "problem": problem},
        ) from error
    return Request(str(metadata.get("tag", "unknown")), items, limits)


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
