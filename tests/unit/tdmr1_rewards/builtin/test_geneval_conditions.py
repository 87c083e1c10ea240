"""The conditions of GenEval and its official verdict, compared with results by hand and a naive implementation."""

from __future__ import annotations

import numpy as np
import pytest
from support.objects import thing

from tdmr1_rewards.builtin.geneval_conditions import check_conditions, relations
from tdmr1_rewards.builtin.geneval_request import RELATIONS, Item, Request

pytestmark = pytest.mark.unit

COLOURS = ("red", "blue", "green")


def conditions(request, detections, margin=0.1):
    objects = {}
    for item in sorted(detections, key=lambda item: -item.score):
        objects.setdefault(item.label, []).append(item)
    checked = check_conditions(request, objects, lambda found, _: [item.colour for item in found], margin)
    return {(condition.kind, condition.thing): condition.met for condition in checked}


CENTRE = (10.0, 10.0, 12.0, 12.0)
"""The other box: center (11, 11), 2 x 2. With a 2 x 2 box, each axis of the offset is reduced by 0.1 x 4 = 0.4."""


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0, 10, 2, 12), {"left of"}),  # offset (-10, 0): 9.6 / 10
        ((20, 10, 22, 12), {"right of"}),
        ((10, 0, 12, 2), {"above"}),
        ((10, 20, 12, 22), {"below"}),
        ((0, 0, 2, 2), {"left of", "above"}),  # 9.6 / 14.14 = 0.68 along both
        ((20, 20, 22, 22), {"right of", "below"}),
        ((0, 4, 2, 6), {"left of"}),  # offset (-10, -6): 9.6 / 11.66 = 0.82, 5.6 / 11.66 = 0.48
        ((0, 3, 2, 5), {"left of", "above"}),  # offset (-10, -7): 9.6 / 12.21 = 0.79, 6.6 / 12.21 = 0.54
        (CENTRE, set()),
        ((10.3, 10, 12.3, 12), set()),  # offset 0.3 is within the margin of 0.4
        ((10.4, 10, 12.4, 12), set()),  # at the margin
        ((10.79, 10, 12.79, 12), set()),  # offset 0.79: 0.39 / 0.79 = 0.494
        ((10.81, 10, 12.81, 12), {"right of"}),  # offset 0.81: 0.41 / 0.81 = 0.506
    ],
)
def test_relations_by_hand(box, expected):
    assert relations(box, CENTRE, 0.1) == expected
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    assert relations(CENTRE, box, 0.1) == {opposite[relation] for relation in expected}


def test_a_component_of_exactly_half_the_length_is_no_relation():
    # Offset (3, 4), length 5. Widths 2 + 3 reduce x by 0.5: 2.5 / 5 is one half. Heights 2 + 2 reduce y to 3.6.
    other = (-1.5, -1.0, 1.5, 1.0)
    assert relations((2.0, 3.0, 4.0, 5.0), other, 0.1) == {"below"}
    assert relations((2.0, 3.0, 4.0, 5.0), (-1.4, -1.0, 1.4, 1.0), 0.1) == {"right of", "below"}


def test_large_boxes_need_a_larger_offset():
    assert relations((0, 0, 60, 60), (15, 0, 65, 60), 0.1) == set()  # offset -10, margin 11
    assert relations((0, 0, 60, 60), (35, 0, 85, 60), 0.1) == {"left of"}  # offset -30: 19 / 30
    assert relations((0, 0, 60, 60), (20, 0, 70, 60), 0.0) == {"left of"}


TWO_DOGS = Request("counting", (Item("dog", 2),), {"dog": 3})


@pytest.mark.parametrize(("found", "met"), [(0, 0.0), (1, 0.5), (2, 1.0), (3, 0.5), (4, 0.0), (9, 0.0)])
def test_counting_by_hand(found, met):
    assert conditions(TWO_DOGS, [thing("dog", 10 * i, 0) for i in range(found)]) == {("count", "dog"): met}


def test_without_exclude_surplus_objects_do_not_matter():
    request = Request("single_object", (Item("dog", 1),), {})
    assert conditions(request, [thing("dog", 10 * i, 0) for i in range(5)]) == {("count", "dog"): 1.0}


@pytest.mark.parametrize(("cats", "met"), [(0, 1.0), (1, 1.0), (2, 0.0), (3, 0.0)])
def test_exclude_is_not_met_from_its_count_on(cats, met):
    request = Request("two_object", (Item("dog", 1),), {"cat": 2})
    found = conditions(request, [thing("dog", 0, 0), *(thing("cat", 10 * i, 9) for i in range(cats))])
    assert found == {("count", "dog"): 1.0, ("exclude", "cat"): met}


def test_color_uses_only_the_most_confident_objects():
    request = Request("colors", (Item("dog", 1, "red"),), {})
    sure_blue, unsure_red = thing("dog", 0, 0, 0.9, "blue"), thing("dog", 9, 0, 0.8, "red")
    assert conditions(request, [sure_blue, unsure_red])["colour", "dog"] == 0.0
    assert conditions(request, [thing("dog", 0, 0, 0.7, "blue"), unsure_red])["colour", "dog"] == 1.0
    two = Request("colors", (Item("dog", 2, "red"),), {})
    assert conditions(two, [sure_blue, unsure_red, thing("dog", 20, 0, 0.7)])["colour", "dog"] == 0.5


def test_position_uses_every_pair_of_the_most_confident_objects():
    request = Request("position", (Item("dog", 1), Item("cat", 1, position=("left of", 0))), {})
    dog, left, right = thing("dog", 20, 0), thing("cat", 5, 0, 0.9), thing("cat", 40, 0, 0.8)
    assert conditions(request, [dog, left, right])["position", "cat"] == 1.0
    assert conditions(request, [dog, thing("cat", 5, 0, 0.7), right])["position", "cat"] == 0.0
    both = Request("position", (Item("dog", 1), Item("cat", 2, position=("left of", 0))), {})
    assert conditions(both, [dog, left, right])["position", "cat"] == 0.5
    assert conditions(both, [dog, left])["position", "cat"] == 0.0  # one cat is missing
    assert conditions(request, [left])["position", "cat"] == 0.0  # no dog


def test_color_binding_by_hand():
    request = Request("color_attr", (Item("dog", 1, "red"), Item("cat", 1, "blue")), {})
    right = [thing("dog", 0, 0, colour="red"), thing("cat", 20, 0, colour="blue")]
    swapped = [thing("dog", 0, 0, colour="blue"), thing("cat", 20, 0, colour="red")]
    assert set(conditions(request, right).values()) == {1.0}
    assert conditions(request, swapped) == {
        ("count", "dog"): 1.0,
        ("count", "cat"): 1.0,
        ("colour", "dog"): 0.0,
        ("colour", "cat"): 0.0,
    }


def test_objects_of_a_class_that_is_requested_twice_are_assigned_by_color():
    include = (Item("dog", 1, "blue"), Item("dog", 1, "red", ("left of", 0)))
    request = Request("position", include, {})

    def met(*found):
        objects = {"dog": list(found)}
        checked = check_conditions(request, objects, lambda items, _: [item.colour for item in items], 0.1)
        return [(condition.kind, condition.requested, condition.met) for condition in checked]

    counted, blue = ("count", "at least 2", 1.0), ("colour", "1 blue", 1.0)
    red, left = ("colour", "1 red", 1.0), ("position", "left of dog", 1.0)
    red_left, blue_right = thing("dog", 0, 0, 0.9, "red"), thing("dog", 20, 0, 0.8, "blue")
    assert met(red_left, blue_right) == [counted, blue, red, left]
    # The more confident dog does not have the first entry's color: both are still assigned by color.
    assert met(thing("dog", 0, 0, 0.8, "red"), thing("dog", 20, 0, 0.9, "blue")) == [counted, blue, red, left]
    # A green dog instead of the blue one: only the color is wrong.
    assert met(red_left, thing("dog", 20, 0, 0.8, "green")) == [counted, ("colour", "1 blue", 0.0), red, left]
    # Only one dog, red.
    assert met(red_left) == [("count", "at least 2", 0.5), ("colour", "1 blue", 0.0), red, (*left[:2], 0.0)]


RED_AND_BLUE = (Item("dog", 1, "red"), Item("dog", 1, "blue"))


@pytest.mark.parametrize(
    ("include", "dogs", "divided", "independent"),
    [
        # The same entry twice is the entry once in the official script: one dog is enough.
        ((Item("dog", 1), Item("dog", 1)), ["red"], False, True),
        ((Item("dog", 1), Item("dog", 1)), ["red", "red"], True, True),
        # Both colors are checked for the most confident dog.
        (RED_AND_BLUE, ["red", "blue"], True, False),
        (RED_AND_BLUE, ["blue", "red"], True, False),
        ((Item("dog", 2), Item("dog", 1, "red")), ["red", "blue"], False, True),
        ((Item("dog", 2), Item("dog", 1, "red")), ["blue", "red", "red"], True, False),
        # The position of the most confident dog is compared with itself.
        ((Item("dog", 1), Item("dog", 1, position=("right of", 0))), ["red", "red"], True, False),
    ],
)
def test_entries_of_one_class_are_divided_or_independent(include, dogs, divided, independent):
    objects = {"dog": [thing("dog", 20 * i, 0, 0.9 - 0.1 * i, colour) for i, colour in enumerate(dogs)]}
    request = Request("position", include, {})

    def correct(divided):
        checked = check_conditions(request, objects, lambda found, _: [d.colour for d in found], 0.1, divided=divided)
        return all(condition.met >= 1 for condition in checked)

    assert (correct(True), correct(False)) == (divided, independent)


@pytest.mark.parametrize("divided", [True, False])
@pytest.mark.parametrize("dogs", range(5))
def test_no_image_meets_a_contradictory_request(dogs, divided):
    request = Request("counting", (Item("dog", 2),), {"dog": 2})
    objects = {"dog": [thing("dog", 10 * i, 0) for i in range(dogs)]}
    (condition,) = check_conditions(request, objects, lambda found, _: [], 0.1, divided=divided)
    assert condition.met == {0: 0.0, 1: 0.5, 2: 0.5, 3: 0.0, 4: 0.0}[dogs]
    assert condition.requested == "at least 2 and fewer than 2"


def naively_correct(request, detections, margin):
    """GenEval's correct or not, written independently from its description, with boxes as center and size."""

    def centre_and_size(item):
        x0, y0, x1, y1 = item.box
        return np.array([(x0 + x1) / 2, (y0 + y1) / 2]), np.array([x1 - x0, y1 - y0])

    def has_relation(one, relation, other):
        (c1, s1), (c2, s2) = centre_and_size(one), centre_and_size(other)
        axis = 0 if relation in ("left of", "right of") else 1
        sign = -1 if relation in ("left of", "above") else 1
        along = sign * (c1 - c2)[axis]
        fraction = (along - margin * (s1 + s2)[axis]) / max(np.linalg.norm(c1 - c2), 1e-12)
        return along > 0 and fraction > 0.5

    groups = []
    for item in request.include:
        members = sorted((d for d in detections if d.label == item.thing), key=lambda d: -d.score)[: item.count]
        if len(members) != item.count:
            return False
        if item.colour and any(d.colour != item.colour for d in members):
            return False
        groups.append(members)
    for item, members in zip(request.include, groups, strict=True):
        if item.position:
            relation, target = item.position
            if not all(has_relation(one, relation, other) for one in members for other in groups[target]):
                return False
    return all(sum(d.label == name for d in detections) < limit for name, limit in request.limits.items())


@pytest.mark.parametrize("divided", [True, False])
def test_all_conditions_are_met_exactly_if_the_naive_implementation_passes(divided):
    rng = np.random.default_rng(4)
    correct = 0
    for case in range(3000):
        names = [str(name) for name in rng.permutation(["dog", "cat", "bird"])]
        include = []
        # Independent entries may name a class twice; with distinct classes both ways agree.
        chosen = names if divided else rng.choice(names, 3)
        for index, name in enumerate(str(name) for name in chosen[: rng.integers(1, 4)]):
            colour = str(rng.choice(COLOURS[:2])) if rng.random() < 0.4 else None
            position = (str(rng.choice(RELATIONS)), int(rng.integers(index))) if index else None
            include.append(Item(name, int(rng.choice([1, 1, 2])), colour, position if rng.random() < 0.5 else None))
        limits = {}
        if rng.random() < 0.5:
            name = str(rng.choice(names))
            limits[name] = int(rng.integers(1, 4))  # may contradict `include`
        request = Request("position", tuple(include), limits)
        found = [
            thing(str(rng.choice(names)), *rng.uniform(0, 60, 2), rng.random(), str(rng.choice(COLOURS[:2])), 6.0)
            for _ in range(rng.integers(0, 7))
        ]
        expected = naively_correct(request, found, 0.1)
        met = conditions_list(request, found, divided)
        assert all(value >= 1 for value in met) == expected, case
        assert all(0 <= value <= 1 for value in met)
        correct += expected
    assert correct > 200


def conditions_list(request, detections, divided):
    objects = {}
    for item in sorted(detections, key=lambda item: -item.score):
        objects.setdefault(item.label, []).append(item)
    colours = lambda found, _: [item.colour for item in found]  # noqa: E731
    return [condition.met for condition in check_conditions(request, objects, colours, 0.1, divided=divided)]
