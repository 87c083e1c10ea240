"""Matches names of object classes: case, plurals, spaces, and synonyms in the label files of datasets."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

SYNONYMS = (
    ("airplane", "aeroplane", "plane"),
    ("motorcycle", "motorbike"),
    ("couch", "sofa"),
    ("potted plant", "houseplant"),
    ("dining table", "table"),
    ("tv", "television", "tv monitor"),
    ("computer mouse", "mouse"),
    ("tv remote", "remote", "remote control"),
    ("computer keyboard", "keyboard"),
    ("cell phone", "mobile phone", "phone"),
    ("hair drier", "hair dryer"),
    ("donut", "doughnut"),
    ("refrigerator", "fridge"),
    ("bicycle", "bike"),
    ("shape", "object"),
)
"""Names of one class: GenEval's first, then those in the label files of COCO, VOC and other datasets."""
IRREGULAR = {
    "people": "person",
    "knives": "knife",
    "mice": "mouse",
    "sheep": "sheep",
    "skis": "skis",
    "scissors": "scissors",
    "buses": "bus",
    "benches": "bench",
    "glasses": "glass",
    "sandwiches": "sandwich",
    "couches": "couch",
    "toothbrushes": "toothbrush",
    "watches": "watch",
    "boxes": "box",
    "children": "child",
    "men": "man",
    "women": "woman",
}
"""Singular forms that the rules of `singular` do not produce."""
MAX_WORDS = 4
"""The longest class name, in words, that is searched for in a text."""
MIN_SIMILARITY = 0.9
"""The lowest similarity (difflib's ratio, 0 to 1) of a misspelled name and a known one, such as "motorcyle"."""


def match_class(name: str, known: Iterable[str]) -> str | None:
    """The name among `known` that means the same class, or None.

    Case, plural, spaces and hyphens are ignored. A known name may be a list of synonyms ("tv, television"). An equal
    name is preferred, then a synonym from SYNONYMS, then the most similar spelling (see MIN_SIMILARITY).
    """
    names = _by_key(known)
    similar = difflib.get_close_matches(_key(name), names, n=1, cutoff=MIN_SIMILARITY)
    return names.get(_key(name)) or (names[similar[0]] if similar else None)


def find_class(text: str, known: Iterable[str]) -> str | None:
    """The name among `known` of the first class that a text mentions, or None; at one position, the longest name."""
    names, words = _by_key(known), re.findall(r"[a-z0-9]+", text.lower())
    for start in range(len(words)):
        for end in range(min(start + MAX_WORDS, len(words)), start, -1):
            found = names.get(_key(" ".join(words[start:end])))
            if found is not None:
                return found
    return None


def singular(name: str) -> str:
    """The singular of an English noun. The last word decides, by IRREGULAR and then by rules."""
    first, space, last = name.rpartition(" ")
    if last in IRREGULAR:
        last = IRREGULAR[last]
    elif last.endswith("ies") and len(last) > 4:
        last = last[:-3] + "y"
    elif last.endswith("s") and not last.endswith(("ss", "us", "is")):
        last = last[:-1]
    return first + space + last


def _key(name: str) -> str:
    """The name in lower case and singular, without spaces, hyphens and other punctuation."""
    words = " ".join(re.findall(r"[a-z0-9]+", name.lower()))
    return singular(words).replace(" ", "")


def _by_key(known: Iterable[str]) -> dict[str, str]:
    """Maps keys to the known names: the key of each name, and the keys of its synonyms that are not known names."""
    names: dict[str, str] = {}
    for entry in known:
        for part in (entry, *entry.split(",")):
            names.setdefault(_key(part), entry)
    for synonyms in SYNONYMS:
        keys = [_key(synonym) for synonym in synonyms]
        present = [names[key] for key in keys if key in names]
        if present:
            names = {**dict.fromkeys(keys, present[0]), **names}
    return names
