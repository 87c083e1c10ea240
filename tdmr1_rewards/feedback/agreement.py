"""How far people agree about the same items."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from tdmr1_rewards.feedback.records import GivenAnswer


@dataclass(frozen=True)
class Agreement:
    """`share` of the pairs of answers to one item that are the same, of `pairs`; None without any.

    `alpha` is Krippendorff's for nominal data: 1 is full agreement, 0 what chance would bring; None where it is not
    defined, which is without pairs and where everybody said the same of everything.
    """

    share: float | None
    pairs: int
    alpha: float | None


def agreement(answers: Iterable[GivenAnswer]) -> Agreement:
    """The agreement in likes and dislikes; skips are no opinion, and an item with one opinion tells nothing."""
    likes, dislikes = Counter[int](), Counter[int]()
    for given in answers:
        if given.answer != "skip":
            (likes if given.answer == "like" else dislikes)[given.item.id] += 1
    return agreement_of((likes[item], dislikes[item]) for item in likes.keys() | dislikes.keys())


def agreement_of(tallies: Iterable[tuple[int, int]]) -> Agreement:
    """The agreement of items of which so many likes and so many dislikes are known."""
    pairs = same = 0
    all_likes = all_dislikes = 0
    disagreement = 0.0
    for liked, disliked in tallies:
        judges = liked + disliked
        if judges < 2:
            continue
        pairs += judges * (judges - 1) // 2
        same += (liked * (liked - 1) + disliked * (disliked - 1)) // 2
        all_likes += liked
        all_dislikes += disliked
        disagreement += liked * disliked / (judges - 1)
    by_chance = all_likes * all_dislikes
    alpha = 1 - (all_likes + all_dislikes - 1) * disagreement / by_chance if by_chance else None
    return Agreement(same / pairs if pairs else None, pairs, alpha)
