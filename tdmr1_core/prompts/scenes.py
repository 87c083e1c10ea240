"""Prompts of everyday and fantastic scenes, for preference rewards, which score any image.

Subjects and places of the held-out set occur in no training prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from tdmr1_core.prompts.prompt import Prompt
from tdmr1_core.prompts.seeded_choice import choose

TRAINING_COUNT = 1920
HELD_OUT_COUNT = 256

SUBJECTS = (
    *(
        "an old fisherman",
        "a red fox",
        "a girl with a blue umbrella",
        "a sleeping cat",
        "two astronauts",
        "a white horse",
    ),
    *(
        "a street violinist",
        "a small wooden boat",
        "a steam locomotive",
        "a glass teapot",
        "a barn owl",
        "a robot gardener",
    ),
    *("a bowl of ripe peaches", "a knight in worn armour", "a yellow bicycle", "a baker with a tray of bread"),
    *("an elephant and her calf", "a lighthouse", "a vase of sunflowers", "a dancer in a green dress"),
)
PLACES = (
    *("at the edge of a misty lake", "in a narrow street after rain", "under a starry sky", "in a sunlit greenhouse"),
    *("on a snowy mountain pass", "in an abandoned library", "on a crowded market square", "in a field of lavender"),
    *("beside a stormy sea", "in a cosy kitchen", "among giant mushrooms", "on a rooftop at sunset"),
)
HELD_OUT_SUBJECTS = (
    *("a clockmaker at work", "a pair of swans", "a child with a paper kite", "a vintage motorcycle", "a dragon"),
    *("a plate of pancakes", "a chess player", "a tabby kitten", "a stone fountain", "a beekeeper"),
)
HELD_OUT_PLACES = (
    *("in an autumn forest", "inside a railway carriage", "on a frozen river", "in a desert canyon at noon"),
    *("in front of a ruined temple", "by candlelight"),
)
STYLES = (
    *("a photograph of {}, shallow depth of field", "an oil painting of {}", "a watercolour of {}", "{}, film still"),
    *(
        "a detailed pencil drawing of {}",
        "{}, digital art",
        "a black-and-white photograph of {}",
        "{}, children's book",
    ),
)


def scene_prompts(held_out: bool) -> list[Prompt]:
    """The training prompts or the held-out prompts."""
    if held_out:
        return _prompts(HELD_OUT_SUBJECTS, HELD_OUT_PLACES, HELD_OUT_COUNT, "scenes-held-out")
    return _prompts(SUBJECTS, PLACES, TRAINING_COUNT, "scenes")


def _prompts(subjects: Sequence[str], places: Sequence[str], count: int, seed: str) -> list[Prompt]:
    scenes = [style.format(f"{subject} {place}") for style, subject, place in product(STYLES, subjects, places)]
    return [Prompt(text[0].upper() + text[1:], {"tag": "scene"}) for text in choose(scenes, count, seed)]
