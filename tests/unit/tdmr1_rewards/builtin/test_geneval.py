"""The reward `geneval`, with detections by hand and with scenes of the tiny world."""

from __future__ import annotations

import time

import numpy as np
import pytest
from support.errors import raises
from support.objects import thing

from tdmr1_core.tiny import world
from tdmr1_rewards.api import RewardBatch, RewardContext
from tdmr1_rewards.builtin import geneval
from tdmr1_rewards.builtin.geneval import (
    NO_REQUEST,
    GenEval,
    GenEvalOptions,
    task_means,
)

pytestmark = pytest.mark.unit


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


def test_every_score_by_hand():
    """One dog too many, and one cat that is green instead of blue."""
    metadata = {
        "tag": "color_attr",
        "include": [{"class": "dog", "count": 1}, {"class": "cat", "count": 1, "color": "blue"}],
    }
    found = [thing("dog", 20, 40), thing("dog", 60, 40), thing("cat", 20, 10, colour="green")]

    def scored(name, detections=found):
        return score(detections, metadata, score=name).scores[0]

    assert scored("strict") == 0.0
    assert scored("exact") == 0.0
    assert scored("graded") == pytest.approx(2 / 3)  # two counts are met (surplus dogs are ignored), the color is not
    assert scored("mixed") == pytest.approx(1 / 3)
    assert scored("published") == pytest.approx(1 / 3)  # 0 for the dogs, 1 for the cat, 0 for its color
    blue = [thing("dog", 20, 40), thing("dog", 60, 40), thing("cat", 20, 10, colour="blue")]
    assert [scored(name, blue) for name in ("strict", "exact")] == [1.0, 0.0]
    assert scored("published", blue) == pytest.approx(2 / 3)
    right = [thing("dog", 20, 40), thing("cat", 20, 10, colour="blue")]
    assert {scored(name, right) for name in ("strict", "exact", "graded", "mixed", "published")} == {1.0}


def test_the_details_of_the_published_score():
    found = [thing("dog", 20 * index, 40) for index in range(5)]
    result = score(found, DOGS, score="published")
    assert result.scores == [-0.5]
    (details,) = result.details
    assert (details["correct"], details["exact"], details["terms"]) == (False, False, [-0.5])
    assert {"exact", "terms"}.isdisjoint(score(found, DOGS, score="strict").details[0])


def test_a_contradictory_request_scores_0():
    contradiction = {"include": [{"class": "dog", "count": 2}], "exclude": [{"class": "dog", "count": 2}]}
    for dogs in range(4):
        found = [thing("dog", 20 * index, 0) for index in range(dogs)]
        assert score(found, contradiction, score="strict").scores == [0.0]
    assert score([thing("dog", 0, 0), thing("dog", 20, 0)], contradiction, score="exact").scores == [1.0]


def test_repeated_classes_are_divided_unless_the_option_is_independent():
    include = [{"class": "dog", "count": 1, "color": "red"}, {"class": "dog", "count": 1, "color": "blue"}]
    found = [thing("dog", 0, 0, colour="red"), thing("dog", 20, 0, colour="blue")]
    assert score(found, {"include": include}, score="strict").scores == [1.0]
    assert score(found, {"include": include}, score="strict", repeated_classes="independent").scores == [0.0]
    assert score(found, {"include": include}, score="exact").scores == [0.0]


def test_the_colors_of_an_object_are_classified_once(monkeypatch):
    calls = []

    def classify(image, objects, name):
        calls.append((name, len(objects)))
        return ["red"] * len(objects)

    reward = GenEval(GenEvalOptions(score="published", repeated_classes="independent"))
    reward._detectors.for_images = lambda images: FakeDetector([thing("dog", 20, 40, colour=None)])
    monkeypatch.setattr(reward._clip, "classify", classify)
    metadata = {"include": [{"class": "dog", "count": 1, "color": "red"}]}
    assert reward(batch_of(np.zeros((2, 80, 80, 3), np.uint8), [metadata] * 2)).scores == [1.0, 1.0]
    assert calls == [("dog", 1)] * 2  # once per image


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


@pytest.mark.parametrize("name", ["published", "strict", "exact", "graded", "mixed"])
def test_good_examples_score_1_and_bad_ones_less(name):
    given = geneval.examples()
    reward = GenEval(GenEvalOptions(score=name))
    result = reward(batch_of([each.image for each in given], [each.metadata for each in given]))
    assert [value == 1.0 for value in result.scores] == [each.good for each in given]
