"""Generated prompts of the six tasks of GenEval (arXiv 2310.11513), for models of the domain "photo".

The prompts use the sentences of GenEval and the 80 class names of COCO, drawn from a seed. None has the request of one
of the 553 evaluation prompts of GenEval, which are excluded by fingerprint. Single objects are the exception: the
evaluation contains all 80, so only their sentences differ. Requests of held-out sets occur in no training set.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from functools import cache
from importlib import resources
from typing import Any

from tdmr1_core.prompts.prompt import Prompt
from tdmr1_rewards.builtin.detection.colours import COLOUR_WORDS
from tdmr1_rewards.builtin.geneval_request import RELATIONS

# fmt: off
NAMES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "computer mouse", "tv remote", "computer keyboard", "cell phone", "microwave", "oven", "toaster",
    "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)
# fmt: on
"""The classes of COCO, with the names that GenEval uses."""
COLOURABLE = tuple(name for name in NAMES if name != "person")
"""The classes that GenEval requests with a color."""
NUMBERS = {2: "two", 3: "three", 4: "four"}
PLURALS = {
    "person": "people",
    "sheep": "sheep",
    "knife": "knives",
    "computer mouse": "computer mice",
    "skis": "skis",
    "scissors": "scissors",
}
"""The plurals that do not just add s or es."""
EVALUATION = "geneval_evaluation.txt"
"""A file in this folder: the fingerprints of the evaluation prompts of GenEval, one per line."""
PER_TASK = 480
"""Training prompts per task. A task with fewer distinct prompts repeats them, so that tasks are equally frequent."""
HELD_OUT_PER_TASK = 40
DRAWS = 6000
"""Random draws per task: enough to find nearly all prompts of tasks with few distinct ones."""
SEED = 2310_11513

Metadata = dict[str, Any]


def geneval(held_out: bool) -> list[Prompt]:
    """Prompts of all tasks, with the metadata of GenEval: 480 training or at most 40 held-out prompts per task."""
    prompts = []
    for task in TASKS:
        distinct = _of_task(task, held_out)
        prompts += distinct if held_out else distinct * (PER_TASK // len(distinct))
    return prompts


def counting(held_out: bool) -> list[Prompt]:
    """The distinct prompts of the counting task: two, three or four objects of a class."""
    return _of_task("counting", held_out)


def fingerprint(metadata: Metadata) -> str:
    """A hash of the request of a prompt, independent of wording and order of objects: eight hexadecimal digits."""
    parts = sorted(
        "|".join([entry["class"], str(entry["count"]), entry.get("color", ""), *map(str, entry.get("position", ()))])
        for entry in metadata["include"]
    )
    return hashlib.blake2b("/".join([metadata["tag"], *parts]).encode(), digest_size=4).hexdigest()


def _of_task(task: str, held_out: bool) -> list[Prompt]:
    """The distinct prompts of a task, in a fixed random order. At most a quarter of them is held out."""
    rng = random.Random(f"{SEED} {task}")
    distinct: dict[str, Metadata] = {}
    for _ in range(DRAWS):
        metadata = {"tag": task, **TASKS[task](rng)}
        mark = fingerprint(metadata)
        if task == "single_object" or mark not in _evaluation():
            distinct.setdefault(mark, metadata)
        if len(distinct) == PER_TASK + HELD_OUT_PER_TASK:
            break
    number = min(HELD_OUT_PER_TASK, len(distinct) // 4)
    chosen = list(distinct.values())
    return [Prompt(entry["prompt"], entry) for entry in (chosen[:number] if held_out else chosen[number:])]


@cache
def _evaluation() -> frozenset[str]:
    """The fingerprints of the evaluation prompts of GenEval."""
    return frozenset((resources.files(__package__) / EVALUATION).read_text().split())


def _single_object(rng: random.Random) -> Metadata:
    name = rng.choice(NAMES)
    return {"include": [_entry(name)], "exclude": [], "prompt": f"a picture of {_with_article(name)}"}


def _two_object(rng: random.Random) -> Metadata:
    first, second = rng.sample(NAMES, 2)
    prompt = f"a photo of {_with_article(first)} and {_with_article(second)}"
    return {"include": [_entry(first), _entry(second)], "exclude": [], "prompt": prompt}


def _counting(rng: random.Random) -> Metadata:
    name, number = rng.choice(NAMES), rng.choice(list(NUMBERS))
    return {
        "include": [_entry(name, number)],
        "exclude": [_entry(name, number + 1)],
        "prompt": f"a photo of {NUMBERS[number]} {_plural(name)}",
    }


def _colors(rng: random.Random) -> Metadata:
    name, colour = rng.choice(COLOURABLE), rng.choice(COLOUR_WORDS)
    prompt = f"a photo of {_with_article(colour)} {name}"
    return {"include": [{**_entry(name), "color": colour}], "exclude": [], "prompt": prompt}


def _position(rng: random.Random) -> Metadata:
    (first, second), relation = rng.sample(NAMES, 2), rng.choice(RELATIONS)
    return {
        "include": [_entry(second), {**_entry(first), "position": [relation, 0]}],
        "exclude": [],
        "prompt": f"a photo of {_with_article(first)} {relation} {_with_article(second)}",
    }


def _color_attr(rng: random.Random) -> Metadata:
    names, colours = rng.sample(COLOURABLE, 2), rng.sample(COLOUR_WORDS, 2)
    pairs = list(zip(names, colours, strict=True))
    objects = " and ".join(f"{_with_article(colour)} {name}" for name, colour in pairs)
    include = [{**_entry(name), "color": colour} for name, colour in pairs]
    return {"include": include, "exclude": [], "prompt": f"a photo of {objects}"}


TASKS: dict[str, Callable[[random.Random], Metadata]] = {
    "single_object": _single_object,
    "two_object": _two_object,
    "counting": _counting,
    "colors": _colors,
    "position": _position,
    "color_attr": _color_attr,
}


def _entry(name: str, count: int = 1) -> Metadata:
    return {"class": name, "count": count}


def _with_article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _plural(name: str) -> str:
    return PLURALS.get(name) or name + ("es" if name.endswith(("s", "ch", "sh")) else "s")
