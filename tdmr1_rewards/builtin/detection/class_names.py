"""One class of objects under its many names: case, plurals, spaces, and what COCO's label files call it."""

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
"""Names of one thing: GenEval's first, then those of COCO's, VOC's and other label files."""
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
"""Plurals that are more than an added s, and names that look like plurals."""
MOST_WORDS = 4
"""Of a class's name, where one is looked for in a text."""
MIN_LIKENESS = 0.9
"""How like a known name (difflib's ratio, 0 to 1) a misspelt one must be to be taken for it: "motorcyle", not "bat"."""


def match_class(name: str, known: Iterable[str]) -> str | None:
    """The one of the `known` names that means the same class, or None.

    Case, plural, spaces and hyphens make no difference; a known name may be a list of synonyms ("tv, television").
    Failing that, a synonym from SYNONYMS, and last the known name that is nearly spelt like it.
    """
    names = _by_key(known)
    alike = difflib.get_close_matches(_key(name), names, n=1, cutoff=MIN_LIKENESS)
    return names.get(_key(name)) or (names[alike[0]] if alike else None)


def find_class(text: str, known: Iterable[str]) -> str | None:
    """The first class that a text names, as one of the `known` names; of two at one place, that of more words."""
    names, words = _by_key(known), re.findall(r"[a-z0-9]+", text.lower())
    for start in range(len(words)):
        for end in range(min(start + MOST_WORDS, len(words)), start, -1):
            found = names.get(_key(" ".join(words[start:end])))
            if found is not None:
                return found
    return None


def singular(name: str) -> str:
    """An English noun in the singular, by its last word: rules and the exceptions in IRREGULAR."""
    first, space, last = name.rpartition(" ")
    if last in IRREGULAR:
        last = IRREGULAR[last]
    elif last.endswith("ies") and len(last) > 4:
        last = last[:-3] + "y"
    elif last.endswith("s") and not last.endswith(("ss", "us", "is")):
        last = last[:-1]
    return first + space + last


def _key(name: str) -> str:
    """A name without case, plural, spaces and hyphens."""
    words = " ".join(re.findall(r"[a-z0-9]+", name.lower()))
    return singular(words).replace(" ", "")


def _by_key(known: Iterable[str]) -> dict[str, str]:
    """Each of the names by its key, and by those of its synonyms that are no name of their own."""
    names: dict[str, str] = {}
    for entry in known:
        for part in (entry, *entry.split(",")):
            names.setdefault(_key(part), entry)
    for synonyms in SYNONYMS:
        keys = [_key(synonym) for synonym in synonyms]
        own = [names[key] for key in keys if key in names]
        if own:
            names = {**dict.fromkeys(keys, own[0]), **names}
    return names
