"""The scores of single images in evaluations, and their pairs in two evaluations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tdmr1_core.runs.jsonl import Row, read_lines, score, step_of, whole_number
from tdmr1_core.runs.metrics_log import IMAGE_SCORES

ImageKey = tuple[str, int]
"""The key of a prompt (`prompt_key`), and which image of this prompt it is, from 0."""
Place = tuple[str, int]
"""A prompt set, by its name in the logs, and an iteration."""


@dataclass(frozen=True)
class ImageScores:
    """The scores of the images of one evaluation, by reward. Images of one seed and key have the same initial noise."""

    seed: int
    keys: tuple[ImageKey, ...]
    scores: Mapping[str, tuple[float | None, ...]]


@dataclass(frozen=True)
class Pairs:
    """The scores of one reward for the images that two evaluations have in common: before and after, (n,) each.

    `prompts` (n,) has the key of each image's prompt.
    """

    before: np.ndarray
    after: np.ndarray
    prompts: np.ndarray


def read_image_scores(folder: Path) -> dict[Place, ImageScores]:
    """The scores of all evaluations of a run; empty for a run of a version that did not store them."""
    return dict(read_lines(folder / IMAGE_SCORES, _read_row))


def pair(before: ImageScores, after: ImageScores, reward: str) -> Pairs | None:
    """The images of both evaluations that have a score in both; None if there are fewer than two.

    Images are the same if seed, prompt and number are.
    """
    if before.seed != after.seed or reward not in before.scores or reward not in after.scores:
        return None
    former = dict(zip(before.keys, before.scores[reward], strict=True))
    found = [
        (first, second, key[0])
        for key, second in zip(after.keys, after.scores[reward], strict=True)
        if second is not None and (first := former.get(key)) is not None
    ]
    if len(found) < 2:
        return None
    firsts, seconds, prompts = zip(*found, strict=True)
    return Pairs(np.array(firsts), np.array(seconds), np.array(prompts))


def _read_row(row: Row) -> tuple[Place, ImageScores]:
    """Convert a line of image_scores.jsonl. Raises one of `durable_files.MALFORMED`."""
    numbers = Counter[str]()
    keys: list[ImageKey] = []
    for prompt, count in row["images"]:
        first = numbers[str(prompt)]
        numbers[str(prompt)] += whole_number(count)
        keys += [(str(prompt), place) for place in range(first, numbers[str(prompt)])]
    scores = {str(name): tuple(map(score, values)) for name, values in row["scores"].items()}
    if any(len(values) != len(keys) for values in scores.values()):
        raise ValueError("a reward does not have one score for each image")
    return (str(row["prompts"]), step_of(row)), ImageScores(whole_number(row["seed"]), tuple(keys), scores)
