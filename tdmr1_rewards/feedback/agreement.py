"""Agreement between people: how often they give equal answers to the same item."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from tdmr1_rewards.feedback.records import GivenAnswer


@dataclass(frozen=True)
class Agreement:
    """Agreement in likes and dislikes, over the items with two or more of them.

    `pairs` counts the pairs of answers to the same item; `share` is the fraction of them that are equal, None without
    pairs. `alpha` is Krippendorff's alpha for nominal data: 1 is full agreement, 0 is chance level. It is undefined,
    and None, without pairs and when all answers are equal.
    """

    share: float | None
    pairs: int
    alpha: float | None


def agreement(answers: Iterable[GivenAnswer]) -> Agreement:
    """The agreement of these answers. Skips, and items with only one like or dislike, are ignored."""
    likes, dislikes = Counter[int](), Counter[int]()
    for given in answers:
        if given.answer != "skip":
            (likes if given.answer == "like" else dislikes)[given.item.id] += 1
    return agreement_of((likes[item], dislikes[item]) for item in likes.keys() | dislikes.keys())


def agreement_of(tallies: Iterable[tuple[int, int]]) -> Agreement:
    """The agreement of items, each given as (likes, dislikes)."""
    pairs = same = 0
    all_likes = all_dislikes = 0
    disagreement = 0.0
    for liked, disliked in tallies:
        answers = liked + disliked
        if answers < 2:
            continue
        pairs += answers * (answers - 1) // 2
        same += (liked * (liked - 1) + disliked * (disliked - 1)) // 2
        all_likes += liked
        all_dislikes += disliked
        disagreement += liked * disliked / (answers - 1)
    chance = all_likes * all_dislikes
    alpha = 1 - (all_likes + all_dislikes - 1) * disagreement / chance if chance else None
    return Agreement(same / pairs if pairs else None, pairs, alpha)
