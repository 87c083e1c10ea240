"""Generated prompts of GenEval's six tasks (arXiv 2310.11513), for models that draw photographs.

Its sentences and COCO's 80 names, drawn anew from a seed. None asks for what one of GenEval's 553 evaluation prompts
asks for: those are known here by their fingerprints. Single objects are the exception, since the evaluation asks for
all 80; their sentences differ. What `held_out` sets ask for is in no other set.
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
from tdmr1_rewards.builtin.geneval import RELATIONS

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
"""COCO's classes as GenEval calls them."""
COLOURABLE = tuple(name for name in NAMES if name != "person")
"""What GenEval asks for in colour."""
NUMBERS = {2: "two", 3: "three", 4: "four"}
PLURALS = {
    "person": "people",
    "sheep": "sheep",
    "knife": "knives",
    "computer mouse": "computer mice",
    "skis": "skis",
    "scissors": "scissors",
}
"""Those that are more than an added s or es."""
EVALUATION = "geneval_evaluation.txt"
"""Beside this file: the fingerprints of GenEval's evaluation prompts, one a line."""
PER_TASK = 480
"""Entries a task in the training set, so that every task is asked for as often; where there are fewer, they repeat."""
HELD_OUT_PER_TASK = 40
DRAWS = 6000
"""Most draws for one task: enough to meet nearly every prompt of the tasks that have few."""
SEED = 2310_11513

Metadata = dict[str, Any]


def geneval(held_out: bool) -> list[Prompt]:
    """Prompts of the six tasks with GenEval's metadata: 480 a task to train with, or up to 40 that were held out."""
    prompts = []
    for task in TASKS:
        every = _of_task(task, held_out)
        prompts += every if held_out else every * (PER_TASK // len(every))
    return prompts


def counting(held_out: bool) -> list[Prompt]:
    """The prompts of the counting task alone, once each: two, three or four of a thing."""
    return _of_task("counting", held_out)


def fingerprint(metadata: Metadata) -> str:
    """What a prompt asks for, whatever its words and the order of its objects, as eight hexadecimal digits."""
    parts = sorted(
        "|".join([entry["class"], str(entry["count"]), entry.get("color", ""), *map(str, entry.get("position", ()))])
        for entry in metadata["include"]
    )
    return hashlib.blake2b("/".join([metadata["tag"], *parts]).encode(), digest_size=4).hexdigest()


def _of_task(task: str, held_out: bool) -> list[Prompt]:
    """The distinct prompts of a task, in a fixed random order: at most a quarter of all there are is held out."""
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
    told = " and ".join(f"{_with_article(colour)} {name}" for name, colour in pairs)
    include = [{**_entry(name), "color": colour} for name, colour in pairs]
    return {"include": include, "exclude": [], "prompt": f"a photo of {told}"}


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
