"""Records of the feedback store. Times are seconds since the epoch, as in `time.time()`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from tdmr1_rewards.errors import Tdmr1Error

Answer = Literal["like", "dislike", "skip"]
ANSWERS: tuple[str, ...] = get_args(Answer)


class UnknownItem(Tdmr1Error):
    """The item of an answer is not in the round that the answer names."""


@dataclass(frozen=True)
class NewItem:
    """An image to judge and its prompt. The image is a PIL image, a uint8 array (H, W, 3) or a file's path."""

    image: Any
    prompt: str


@dataclass(frozen=True)
class Item:
    """A stored image with its prompt. The same image with another prompt is another item."""

    id: int
    hash: str
    prompt: str


@dataclass(frozen=True)
class Round:
    """Items that are opened for judging together.

    `run` and `step` name the run and iteration that opened the round; `judges` is the number of people who judge each
    item.
    """

    id: int
    title: str
    run: str
    step: int | None
    judges: int
    deadline: float | None
    opened: float


@dataclass(frozen=True)
class Offer:
    """An item that a person may judge now, with its round and the number of its group in that round."""

    item: Item
    round: Round
    group: int


@dataclass(frozen=True)
class GivenAnswer:
    """A person's answer. `name` is the name that the person last entered; `run` and `step` are those of the round."""

    item: Item
    answer: Answer
    person: str
    name: str
    time: float
    run: str
    step: int | None


@dataclass(frozen=True)
class Progress:
    """Counts of a round: its distinct items, the items with all their answers (skips count), and all answers."""

    items: int
    done: int
    answers: int


def like_fraction(answers: Iterable[GivenAnswer]) -> float | None:
    """Likes / (likes + dislikes), 0 to 1; None without likes and dislikes."""
    given = [answer.answer for answer in answers if answer.answer != "skip"]
    return given.count("like") / len(given) if given else None
