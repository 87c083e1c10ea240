"""The published training score and the exact verdict, compared with results by hand and a naive implementation."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from support.objects import thing

from tdmr1_rewards.builtin.geneval_published import PublishedScore, score_as_published
from tdmr1_rewards.builtin.geneval_request import RELATIONS, Item, Request

pytestmark = pytest.mark.unit

MARGIN = 0.1


def published(include, found, limits=None):
    """The published score of an image with the objects `found`."""
    objects = {}
    for item in sorted(found, key=lambda item: -item.score):
        objects.setdefault(item.label, []).append(item)
    request = Request("counting", tuple(include), limits or {})
    return score_as_published(request, objects, lambda members, _: [item.colour for item in members], MARGIN)


def dogs(*colours):
    return [thing("dog", 20 * index, 0, 0.9 - index / 100, colour) for index, colour in enumerate(colours)]


@pytest.mark.parametrize(
    ("found", "term"), [(0, 0.0), (1, 0.5), (2, 1.0), (3, 0.5), (4, 0.0), (5, -0.5), (8, -2.0), (16, -6.0)]
)
def test_the_count_by_hand(found, term):
    """1 - |found - 2| / 2: surplus objects count against it without `exclude`, and below 0."""
    score = published([Item("dog", 2)], dogs(*["red"] * found))
    assert score == PublishedScore((term,), found == 2)
    assert score.value == term


@pytest.mark.parametrize(
    ("found", "terms", "exact"),
    [
        (["red", "red"], (1.0, 1.0), True),
        (["red", "blue"], (1.0, 0.5), False),
        (["blue", "blue"], (1.0, 0.0), False),
        (["red"], (0.5, 0.0), False),  # the count is wrong: the color counts 0, although the dog is red
        (["red"] * 3, (0.5, 0.0), False),
        (["red"] * 5, (-0.5, 0.0), False),
        ([], (0.0, 0.0), False),
    ],
)
def test_the_color_by_hand(found, terms, exact):
    assert published([Item("dog", 2, "red")], dogs(*found)) == PublishedScore(terms, exact)


DOG, LEFT, RIGHT = thing("dog", 40, 0), thing("cat", 10, 0), thing("cat", 70, 0)
LEFT_CAT = Item("cat", 1, position=("left of", 0))
RED_LEFT_CAT = Item("cat", 1, "red", ("left of", 0))


@pytest.mark.parametrize(
    ("include", "found", "terms", "exact"),
    [
        ((Item("dog", 1), LEFT_CAT), [DOG, LEFT], (1, 1, 1), True),
        # The relation fails: a 0 and a 1.
        ((Item("dog", 1), LEFT_CAT), [DOG, RIGHT], (1, 1, 0, 1), False),
        # The cat's count is wrong: one 0.
        ((Item("dog", 1), LEFT_CAT), [DOG], (1, 0, 0), False),
        ((Item("dog", 1), LEFT_CAT), [DOG, LEFT, RIGHT], (1, 0, 0), False),
        # The dog's count is wrong: there is nothing to compare with, one 0.
        ((Item("dog", 1), LEFT_CAT), [LEFT], (0, 1, 0), False),
        ((Item("dog", 1), LEFT_CAT), [DOG, thing("dog", 50, 0), LEFT], (0, 1, 0), False),
        # The dog's color is wrong: one 0.
        ((Item("dog", 1, "blue"), LEFT_CAT), [DOG, LEFT], (1, 0, 1, 0), False),
        # Color and position: with a wrong count one 0 for both, with a wrong color no term for the position.
        ((Item("dog", 1), RED_LEFT_CAT), [DOG, LEFT], (1, 1, 1, 1), True),
        ((Item("dog", 1), RED_LEFT_CAT), [DOG, RIGHT], (1, 1, 1, 0, 1), False),
        ((Item("dog", 1), RED_LEFT_CAT), [DOG], (1, 0, 0), False),
        ((Item("dog", 1), RED_LEFT_CAT), [DOG, thing("cat", 10, 0, colour="blue")], (1, 1, 0), False),
        # All pairs have to be in the relation.
        ((Item("dog", 1), Item("cat", 2, position=("left of", 0))), [DOG, LEFT, RIGHT], (1, 1, 0, 1), False),
        ((Item("dog", 1), Item("cat", 2, position=("left of", 0))), [DOG, LEFT, thing("cat", 5, 0)], (1, 1, 1), True),
        # The bird refers to a cat whose own position is wrong: one 0 for the bird.
        (
            (Item("dog", 1), LEFT_CAT, Item("bird", 1, position=("above", 1))),
            [DOG, RIGHT, thing("bird", 70, -40)],
            (1, 1, 1, 0, 1, 0),
            False,
        ),
        (
            (Item("dog", 1), LEFT_CAT, Item("bird", 1, position=("above", 1))),
            [DOG, LEFT, thing("bird", 10, -40)],
            (1, 1, 1, 1, 1),
            True,
        ),
        # An extension: a position that refers to a later entry.
        ((Item("cat", 1, position=("left of", 1)), Item("dog", 1)), [DOG, LEFT], (1, 1, 1), True),
        ((Item("cat", 1, position=("left of", 1)), Item("dog", 1)), [DOG, RIGHT], (1, 1, 0, 1), False),
        ((Item("cat", 1, position=("left of", 1)), Item("dog", 1, "blue")), [DOG, LEFT], (1, 1, 0, 0), False),
    ],
)
def test_the_position_by_hand(include, found, terms, exact):
    score = published(include, found)
    assert (sorted(score.terms), score.exact) == (sorted(terms), exact)
    assert score.value == pytest.approx(sum(terms) / len(terms))


def test_a_wrong_relation_lowers_the_score_less_than_a_missing_object():
    """Two terms of a failed relation: 3 / 4, and not 2 / 3 as with one 0."""
    include = Item("dog", 1), LEFT_CAT
    assert published(include, [DOG, RIGHT]).value == 0.75
    assert published(include, [DOG]).value == pytest.approx(1 / 3)


def test_exclude_plays_no_part():
    for limits in ({}, {"dog": 1}, {"cat": 1}, {"dog": 2}):
        assert published([Item("dog", 1)], [DOG, LEFT], limits) == PublishedScore((1.0,), True)
        assert published([Item("dog", 1)], dogs("red", "red", "red"), limits) == PublishedScore((-1.0,), False)


def test_entries_of_one_class_are_independent():
    include = Item("dog", 1, "red"), Item("dog", 1, "blue")
    assert published(include, dogs("red", "blue")) == PublishedScore((0.0, 0.0, 0.0, 0.0), False)
    assert published(include, dogs("red")) == PublishedScore((1.0, 1.0, 1.0, 0.0), False)
    assert published([Item("dog", 2), Item("dog", 2, "red")], dogs("red", "red")) == PublishedScore((1, 1, 1), True)


def test_without_include_the_score_is_0():
    assert published([], [DOG]) == PublishedScore((), True)
    assert published([], [DOG]).value == 0.0


def test_colors_are_classified_only_if_the_count_is_right():
    def classify(members, name):
        raise AssertionError

    request = Request("colors", (Item("dog", 1, "red"), Item("cat", 1)), {})
    score = score_as_published(request, {"dog": dogs("red", "red"), "cat": [LEFT]}, classify, MARGIN)
    assert score.terms == (0.0, 0.0, 1.0)


def naive_score(include, found):
    """The published score as a fraction, and the exact verdict, by recursion over what an entry needs."""

    def members(entry):
        return [item for item in found if item.label == entry.thing]

    def in_relation(one, relation, other):
        """Whether the offset minus the margin, along the relation, is more than half of the distance."""
        boxes = np.array([one.box, other.box]).reshape(2, 2, 2)
        offset = boxes[0].sum(axis=0) / 2 - boxes[1].sum(axis=0) / 2
        size = (boxes[:, 1] - boxes[:, 0]).sum(axis=0)
        axis, sign = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}[relation]
        return sign * offset[axis] - MARGIN * size[axis] > 0.5 * np.linalg.norm(offset) > 0

    def counted(entry):
        return len(members(entry)) == entry.count

    def coloured(entry):
        return entry.colour is None or all(item.colour == entry.colour for item in members(entry))

    def placed(index):
        entry = include[index]
        if entry.position is None:
            return True
        relation, target = entry.position
        pairs = [(one, other) for one in members(entry) for other in members(include[target])]
        return usable(target, index) and all(in_relation(one, relation, other) for one, other in pairs)

    def usable(target, index):
        """Whether entry `target` can be compared with: right as far as it was checked before entry `index`."""
        return counted(include[target]) and coloured(include[target]) and (target > index or placed(target))

    terms = []
    for index, entry in enumerate(include):
        number = len(members(entry))
        terms.append(1 - Fraction(abs(number - entry.count), entry.count))
        if not counted(entry):
            terms += [0] * (entry.colour is not None or entry.position is not None)
            continue
        if entry.colour is not None:
            wrong = sum(item.colour != entry.colour for item in members(entry))
            terms.append(1 - Fraction(wrong, entry.count))
        if entry.position is not None and coloured(entry):
            if not usable(entry.position[1], index):
                terms.append(0)
            else:
                terms += [1] if placed(index) else [0, 1]
    exact = all(counted(entry) and coloured(entry) and placed(index) for index, entry in enumerate(include))
    return sum(terms, Fraction(0)) / max(len(terms), 1), exact


def test_the_score_agrees_with_the_naive_implementation():
    rng = np.random.default_rng(6)
    exact = negative = doubled = 0
    for case in range(6000):
        number = int(rng.integers(1, 4))
        include = []
        for index in range(number):
            colour = str(rng.choice(["red", "blue"])) if rng.random() < 0.4 else None
            others = [target for target in range(number) if target != index]
            # Mostly earlier entries, as in GenEval; later ones are the extension.
            targets = [target for target in others if target < index or rng.random() < 0.2]
            position = (str(rng.choice(RELATIONS)), int(rng.choice(targets))) if targets else None
            name = str(rng.choice(["dog", "cat", "bird"])) if rng.random() < 0.3 else ["dog", "cat", "bird"][index]
            count = int(rng.choice([1, 1, 1, 2, 3]))
            include.append(Item(name, count, colour, position if rng.random() < 0.7 else None))
        found = []
        for name in {item.thing for item in include} | {"bird"}:
            wanted = next((item.count for item in include if item.thing == name), 0)
            seen = wanted if rng.random() < 0.7 else int(rng.integers(0, 8))
            mostly = str(rng.choice(["red", "blue"]))
            for _ in range(seen):
                colour = mostly if rng.random() < 0.8 else "green"
                found.append(thing(name, *rng.uniform(0, 60, 2), rng.random(), colour, 6.0))
        expected, right = naive_score(include, found)
        score = published(include, found)
        assert score.value == pytest.approx(float(expected)), case
        assert score.exact == right, case
        exact += right
        negative += score.value < 0
        doubled += not right and score.value > 0.7
    assert min(exact, negative, doubled) > 200
