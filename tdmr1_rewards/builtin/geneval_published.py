"""The score with which TDM-R1 (arXiv 2603.07700) was trained on GenEval, and the exact verdict beside it.

The authors of TDM-R1 train with the reward server of flow_grpo (yifan123/reward-server, reward_server/gen_eval.py). Its
score is the mean of a list of terms, and its `strict_accuracy` is the exact verdict. Both read `include` only, entry by
entry in order:

1. The count: 1 - |found - count| / count. Surplus objects count against it in every task, so the term may be negative.
2. If the count is wrong and the entry has a color, a position or both: one term, 0. Nothing else is checked.
3. If the count is right and the entry has a color: 1 - |right - count| / count, with the number of objects that have
   the color.
4. If count and color are right and the entry has a position: 0 if the other entry is not right itself; 1 if the
   relation holds for all pairs of objects; else two terms, 0 and 1. The second of the two looks like an oversight, but
   it is what the published model was trained with: a wrong relation then costs half as much.

An entry is right if its count is exact and its color and position hold. Two cases are left open by that code. A
position that refers to a later entry raises IndexError there; here that entry is right if its count and color are. And
a request without `include` has no terms; its score is 0 there and here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from tdmr1_rewards.builtin.detection.detections import Detection
from tdmr1_rewards.builtin.geneval_conditions import ColourClassifier, Objects, relations
from tdmr1_rewards.builtin.geneval_request import Request


@dataclass(frozen=True)
class PublishedScore:
    """The terms of the score of one image, each at most 1, and whether every entry of `include` is exactly right."""

    terms: tuple[float, ...]
    exact: bool

    @property
    def value(self) -> float:
        """The mean of the terms: at most 1, negative if there are many surplus objects; 0 without terms."""
        return fmean(self.terms) if self.terms else 0.0


def score_as_published(
    request: Request, objects: Objects, classify_colours: ColourClassifier, position_margin: float
) -> PublishedScore:
    """The published score of one image, whose `objects` are those that detection kept, by class.

    `position_margin` (0 or more) is the margin of `relations`. Colors are classified only for entries whose count is
    right. Source: see the module.
    """
    terms: list[float] = []
    right: list[Sequence[Detection] | None] = []  # the objects of each entry, None for an entry that is wrong
    for item in request.include:
        found = objects.get(item.thing, ())
        terms.append(_closeness(len(found), item.count))
        if len(found) != item.count:
            terms += [0.0] if item.colour is not None or item.position is not None else []
            right.append(None)
        elif item.colour is None:
            right.append(found)
        else:
            number = classify_colours(found, item.thing).count(item.colour)
            terms.append(_closeness(number, item.count))
            right.append(found if number == item.count else None)
    # Positions come second, because they may refer to later entries. An entry that fails here is wrong for later ones.
    for index, item in enumerate(request.include):
        members = right[index]
        if item.position is None or members is None:
            continue
        relation, target = item.position
        added = _position_terms(relation, members, right[target], position_margin)
        terms += added
        if 0.0 in added:
            right[index] = None
    return PublishedScore(tuple(terms), all(found is not None for found in right))


def _closeness(found: int, count: int) -> float:
    """1 - |found - count| / count: 1 if they are equal, negative if `found` is more than twice `count`."""
    return 1 - abs(found - count) / count


def _position_terms(
    relation: str, found: Sequence[Detection], other: Sequence[Detection] | None, margin: float
) -> list[float]:
    """The terms of a position: [1] if it holds, [0] if the other entry is wrong, [0, 1] if the relation fails."""
    if other is None:
        return [0.0]
    holds = all(relation in relations(a.box, b.box, margin) for a in found for b in other)
    return [1.0] if holds else [0.0, 1.0]
