"""GenEval's rules compared with results by hand, a naive implementation, and scenes of the tiny world."""

from __future__ import annotations

import time

import numpy as np
import pytest
from support.errors import raises

from tdmr1_core.tiny import world
from tdmr1_rewards.api import RewardBatch, RewardContext
from tdmr1_rewards.builtin import geneval
from tdmr1_rewards.builtin.detection.detections import Detection
from tdmr1_rewards.builtin.geneval import (
    NO_REQUEST,
    GenEval,
    GenEvalOptions,
    Item,
    Request,
    check_conditions,
    relations,
    task_means,
)

pytestmark = pytest.mark.unit

COLOURS = ("red", "blue", "green")


def thing(label, x, y, score=0.95, colour="red", side=2.0):
    """A square object with its center at (x, y)."""
    half = side / 2
    return Detection(label, score, (x - half, y - half, x + half, y + half), colour=colour)


def batch_of(images, metadata, prompts=None):
    count = len(metadata)
    return RewardBatch(
        images=np.asarray(images),
        prompts=prompts or ["an image"] * count,
        metadata=metadata,
        group_ids=[0] * count,
        image_ids=list(range(count)),
        context=RewardContext(None, 0, 0),
    )


class FakeDetector:
    """Returns the same detections for every image; knows dogs, cats and birds."""

    def __init__(self, detections):
        self.detections = detections

    def class_of(self, name):
        if name in ("dog", "cat", "bird"):
            return name
        raise geneval.UnknownClassError(f"no {name!r}")

    def detect(self, images, classes):
        return [[item for item in self.detections if item.label in wanted] for wanted in classes]


def score(detections, metadata, **options):
    reward = GenEval(GenEvalOptions(**options))
    reward._detectors.for_images = lambda images: FakeDetector(detections)
    return reward(batch_of(np.zeros((1, 80, 80, 3), np.uint8), [metadata]))


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


def test_all_conditions_are_met_exactly_if_the_naive_implementation_passes():
    rng = np.random.default_rng(4)
    correct = 0
    for case in range(3000):
        names = [str(name) for name in rng.permutation(["dog", "cat", "bird"])]
        include = []
        for index, name in enumerate(names[: rng.integers(1, 4)]):
            colour = str(rng.choice(COLOURS[:2])) if rng.random() < 0.4 else None
            position = (str(rng.choice(geneval.RELATIONS)), int(rng.integers(index))) if index else None
            include.append(Item(name, int(rng.choice([1, 1, 2])), colour, position if rng.random() < 0.5 else None))
        limits = {}
        if rng.random() < 0.5:
            name = str(rng.choice(names))
            limits[name] = 1 + max((item.count for item in include if item.thing == name), default=0)
        request = Request("position", tuple(include), limits)
        found = [
            thing(str(rng.choice(names)), *rng.uniform(0, 60, 2), rng.random(), str(rng.choice(COLOURS[:2])), 6.0)
            for _ in range(rng.integers(0, 7))
        ]
        expected = naively_correct(request, found, 0.1)
        met = conditions_list(request, found)
        assert all(value >= 1 for value in met) == expected, case
        assert all(0 <= value <= 1 for value in met)
        correct += expected
    assert correct > 200


def conditions_list(request, detections):
    objects = {}
    for item in sorted(detections, key=lambda item: -item.score):
        objects.setdefault(item.label, []).append(item)
    checked = check_conditions(request, objects, lambda found, _: [item.colour for item in found], 0.1)
    return [condition.met for condition in checked]


DOGS = {"tag": "counting", "include": [{"class": "dog", "count": 2}], "exclude": [{"class": "dog", "count": 3}]}


def test_the_task_decides_the_threshold():
    found = [thing("dog", 0, 0, 0.95), thing("dog", 20, 0, 0.9), thing("dog", 40, 0, 0.5)]
    assert score(found, DOGS, score="strict").scores == [0.0]  # 0.9 is not above 0.9
    assert score(found, DOGS, score="graded").scores == [0.5]
    assert score(found[:2], {**DOGS, "tag": "two_object"}, score="strict").scores == [1.0]
    assert score(found, {**DOGS, "tag": "two_object"}, score="strict").scores == [0.0]  # the third counts at 0.3
    assert score(found, DOGS, score="strict", counting_threshold=0.6).scores == [1.0]


def test_only_the_16_most_confident_objects_are_used():
    found = [thing("dog", 9 * i, 0, 0.99) for i in range(40)]
    assert score(found, DOGS).details[0]["conditions"][0]["found"] == "16"
    assert len(score(found, DOGS, max_per_class=3).details[0]["boxes"]) == 3


def test_duplicate_detections_count_unless_the_overlap_is_limited():
    found = [thing("dog", 0, 0, 0.95), thing("dog", 20, 0, 0.94), thing("dog", 0.1, 0, 0.93)]
    assert score(found, DOGS, score="strict").scores == [0.0]
    assert score(found, DOGS, score="strict", max_overlap=0.8).scores == [1.0]


def test_scores_and_details_by_hand():
    metadata = {
        "tag": "position",
        "include": [
            {"class": "dog", "count": 1, "color": "red"},
            {"class": "cat", "count": 1, "color": "blue", "position": ["above", 0]},
        ],
    }
    found = [thing("dog", 20, 40), thing("cat", 20, 10, colour="green"), thing("bird", 1, 1)]
    assert score(found, metadata, score="strict").scores == [0.0]
    assert score(found, metadata, score="graded").scores == [0.8]
    result = score(found, metadata)
    assert result.scores == [0.4]
    (details,) = result.details
    assert (details["tag"], details["correct"]) == ("position", False)
    assert [(entry["condition"], entry["class"], entry["met"]) for entry in details["conditions"]] == [
        ("count", "dog", 1.0),
        ("count", "cat", 1.0),
        ("colour", "dog", 1.0),
        ("colour", "cat", 0.0),
        ("position", "cat", 1.0),
    ]
    assert details["conditions"][3]["found"] == "1 green"
    assert details["boxes"][1] == {"box": [19.0, 9.0, 21.0, 11.0], "label": "cat", "colour": "green", "score": 0.95}


def test_a_request_that_cannot_be_checked_has_no_score_but_a_reason():
    reward = GenEval(GenEvalOptions())
    image = np.full((24, 24, 3), 230, np.uint8)
    circle = {"include": [{"class": "circle", "count": 1}]}
    pink = {"include": [{"class": "circle", "count": 1, "color": "pink"}]}
    dog = {"include": [{"class": "dog", "count": 1}]}
    result = reward(batch_of([image] * 4, [circle, {}, pink, dog]))
    assert result.scores == [0.0, None, None, None]
    reasons = [details.get("reason", "") for details in result.details]
    assert reasons[1] == NO_REQUEST
    assert reasons[2] == "hue does not determine the color pink"
    assert "'dog'" in reasons[3]
    assert reward(batch_of([image], [dog])).scores == [None]


def test_a_detector_that_knows_no_requested_class_is_an_error():
    with raises("reward-metadata", **{"class": "dog"}):
        GenEval(GenEvalOptions())(batch_of(np.zeros((1, 24, 24, 3), np.uint8), [{"include": [{"class": "dog"}]}]))


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ({"include": [{"count": 1}]}, "'class' is missing"),
        ({"include": [{"class": "dog", "count": 0}]}, "'count' of 'dog' is 0"),
        ({"include": [{"class": "dog", "count": True}]}, "'count' of 'dog' is True"),
        ({"include": [{"class": "dog", "color": "blu"}]}, "did you mean 'blue'"),
        (
            {"include": [{"class": "dog", "position": ["left of", 0]}]},
            "entry 0: 'position' refers to entry 0, expected the index of another of the 1",
        ),
        (
            {"include": [{"class": "dog"}, {"class": "cat", "position": ["beside", 0]}]},
            "entry 1: 'position' is 'beside', expected one of left of",
        ),
        (
            {"include": [{"class": "dog"}, {"class": "cat", "position": ["above", 2]}]},
            "entry 1: 'position' refers to entry 2, expected the index of another of the 2",
        ),
        ({"include": [{"class": "dog", "count": 2}], "exclude": [{"class": "dog", "count": 2}]}, "fewer than 2"),
        ({"include": ["dog"]}, "'str' object has no attribute"),
    ],
)
def test_metadata_that_do_not_follow_the_layout_are_an_error_that_names_the_prompt(entries, problem):
    with raises("reward-metadata", prompt="some dogs") as caught:
        GenEval(GenEvalOptions())(batch_of(np.zeros((1, 24, 24, 3), np.uint8), [entries], ["some dogs"]))
    assert problem in caught.value.values["problem"]


def test_task_means_by_hand():
    details = [{"tag": tag} for tag in ("counting", "position", "counting", "colors")] + [{"reason": "none"}]
    means = task_means([1.0, 0.5, 0.0, 1.0, None], details)
    assert means == {"counting": 0.5, "colors": 1.0, "position": 0.5, "overall": pytest.approx(2 / 3)}
    assert list(means) == ["counting", "colors", "position", "overall"]
    assert task_means([None], [{"reason": "none"}]) == {}


def other(choices, value):
    return next(choice for choice in choices if choice != value)


def requests_of(scene):
    """Metadata that matches a scene (key "right"), and metadata with one error, by the kind of error."""
    if scene.relation is None:
        item, number = scene.objects[0], len(scene.objects)

        def counting(count, colour, shape):
            include = [{"class": shape, "count": count, "color": colour}]
            return {"tag": "counting", "include": include, "exclude": [{"class": shape, "count": count + 1}]}

        return {
            "right": counting(number, item.colour, item.shape),
            "count": counting(number % 4 + 1, item.colour, item.shape),
            "colour": counting(number, other(world.COLOURS, item.colour), item.shape),
            "shape": counting(number, item.colour, other(world.SHAPES, item.shape)),
        }
    first, second = ((item.colour, item.shape) for item in scene.objects)
    pair = world.PairCaption
    return {
        "right": pair(first, scene.relation, second).metadata,
        "position": pair(first, world.OPPOSITE[scene.relation], second).metadata,
        "colour": pair((second[0], first[1]), scene.relation, (first[0], second[1])).metadata,
        "shape": pair(first, scene.relation, (second[0], other(world.SHAPES, second[1]))).metadata,
    }


def test_verdicts_agree_with_the_scenes():
    rng = np.random.default_rng(8)
    scenes = [world.sample_scene(rng, pair_share=0.5) for _ in range(800)]
    images = np.stack([world.render(scene, rng) for scene in scenes])
    reward = GenEval(GenEvalOptions(score="strict"))
    cases = [
        (index, kind, metadata) for index, scene in enumerate(scenes) for kind, metadata in requests_of(scene).items()
    ]
    result = reward(batch_of(images[[index for index, _, _ in cases]], [metadata for _, _, metadata in cases]))
    verdicts = {}
    for (_, kind, _), verdict in zip(cases, result.scores, strict=True):
        verdicts.setdefault(kind, []).append(verdict == float(kind == "right"))
    for kind, agreed in verdicts.items():
        print(f"{kind}: {np.mean(agreed):.4f} of {len(agreed)}")
        assert np.mean(agreed) >= 0.98
    assert sum(map(len, verdicts.values())) == 3200


def test_a_batch_takes_less_than_2_ms_per_image():
    rng = np.random.default_rng(2)
    scenes = [world.sample_scene(rng, pair_share=0.5) for _ in range(96)]
    batch = batch_of(
        np.stack([world.render(scene, rng) for scene in scenes]), [requests_of(scene)["right"] for scene in scenes]
    )
    reward, times = GenEval(GenEvalOptions()), []
    for _ in range(4):
        begin = time.process_time()
        reward(batch)
        times.append(time.process_time() - begin)
    assert min(times) / len(batch) < 0.002


def test_good_examples_score_1_and_bad_ones_less():
    given = geneval.examples()
    result = GenEval(GenEvalOptions())(batch_of([each.image for each in given], [each.metadata for each in given]))
    assert [value == 1.0 for value in result.scores] == [each.good for each in given]
