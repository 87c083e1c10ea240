"""What the store takes and gives. Times are seconds as `time.time()` counts them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from tdmr1_rewards.errors import Tdmr1Error

Answer = Literal["like", "dislike", "skip"]
ANSWERS: tuple[str, ...] = get_args(Answer)


class UnknownItem(Tdmr1Error):
    """An answer to something that its round does not ask."""


@dataclass(frozen=True)
class NewItem:
    """A picture to be judged: a PIL image, a uint8 array (H, W, 3) or the path of a picture file; and its prompt."""

    image: Any
    prompt: str


@dataclass(frozen=True)
class Item:
    """A picture with its prompt, which is what people judge: the same picture for another prompt is another item."""

    id: int
    hash: str
    prompt: str


@dataclass(frozen=True)
class Round:
    """What is put before people together; `run` and `step` say who asks, `judges` how many people see each item."""

    id: int
    title: str
    run: str
    step: int | None
    judges: int
    deadline: float | None
    opened: float


@dataclass(frozen=True)
class Offer:
    """An item that a person may judge now, in which round, and the number of its group there."""

    item: Item
    round: Round
    group: int


@dataclass(frozen=True)
class GivenAnswer:
    """A person's answer; `name` is what the person last called themselves, `run` and `step` those of the round."""

    item: Item
    answer: Answer
    person: str
    name: str
    time: float
    run: str
    step: int | None


@dataclass(frozen=True)
class Progress:
    """How far a round is: its different items, those that have all their answers (skips count), and all answers."""

    items: int
    done: int
    answers: int


def like_fraction(answers: Iterable[GivenAnswer]) -> float | None:
    """Likes / (likes + dislikes), 0 to 1; None without any of them."""
    given = [answer.answer for answer in answers if answer.answer != "skip"]
    return given.count("like") / len(given) if given else None
