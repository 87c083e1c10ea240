"""Class names, filters of detections, non-maximum suppression, blobs, and the choice of the detector."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from support.errors import raises

from tdmr1_core.tiny import world
from tdmr1_rewards.builtin.detection.blobs import BlobDetector, find_objects
from tdmr1_rewards.builtin.detection.class_names import find_class, match_class, singular
from tdmr1_rewards.builtin.detection.detections import Detection, UnknownClassError, overlap, strongest, suppress
from tdmr1_rewards.builtin.detection.detectors import DetectorChoice, DetectorOptions

pytestmark = pytest.mark.unit

COCO = ("person", "motorcycle", "bus", "dog", "couch", "potted plant", "dining table", "tv", "mouse", "knife", "remote")
VOC_LIKE = ("person", "motorbike", "sofa", "pottedplant", "diningtable", "tvmonitor", "cat", "boat", "horse")


def at(x, y, side, score=1.0, label="dog"):
    return Detection(label, score, (x, y, x + side, y + side))


@pytest.mark.parametrize(
    ("name", "known", "found"),
    [
        ("Dog", COCO, "dog"),
        ("DOGS", COCO, "dog"),
        ("people", COCO, "person"),
        ("buses", COCO, "bus"),
        ("knives", COCO, "knife"),
        ("potted-plants", COCO, "potted plant"),
        ("computer mouse", COCO, "mouse"),
        ("tv remote", COCO, "remote"),
        ("sofa", COCO, "couch"),
        ("couch", VOC_LIKE, "sofa"),
        ("potted plant", VOC_LIKE, "pottedplant"),
        ("dining tables", VOC_LIKE, "diningtable"),
        ("tv", VOC_LIKE, "tvmonitor"),
        ("motorcycle", VOC_LIKE, "motorbike"),
        ("motorcyle", COCO, "motorcycle"),
        ("television", ("television, tv set", "sea"), "television, tv set"),
        ("bat", VOC_LIKE, None),
        ("goat", VOC_LIKE, None),
        ("house", VOC_LIKE, None),
        ("plant", COCO, None),
    ],
)
def test_a_class_is_matched_by_its_names(name, known, found):
    assert match_class(name, known) == found


def test_an_equal_name_is_preferred_to_a_synonym():
    assert match_class("mouse", ("computer mouse", "mouse")) == "mouse"
    assert match_class("table", ("dining table", "table")) == "table"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("three dogs in the park", "dog"),
        ("A photo of two Potted Plants.", "potted plant"),
        ("four people and a dog", "person"),
        ("three sofas", "couch"),
        ("two televisions", "tv"),
        ("two cats", None),
        ("doggedly", None),
        ("", None),
    ],
)
def test_the_first_class_in_a_prompt_is_found(text, found):
    assert find_class(text, COCO) == found


def test_at_one_position_the_longest_name_is_found():
    assert find_class("two hot dogs", ("dog", "hot dog", "hot")) == "hot dog"


@pytest.mark.parametrize(
    ("plural", "single"),
    [("wine glasses", "wine glass"), ("skis", "skis"), ("berries", "berry"), ("glass", "glass"), ("ties", "tie")],
)
def test_the_singular(plural, single):
    assert singular(plural) == single


def test_overlap_by_hand():
    # Right and bottom are the last pixels inside: these boxes are 3 x 3 pixels.
    assert overlap((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(6 / 12)
    assert overlap((0, 0, 2, 2), (0, 0, 2, 2)) == 1
    assert overlap((0, 0, 2, 2), (2, 0, 4, 2)) == pytest.approx(3 / 15)
    assert overlap((0, 0, 2, 2), (3, 0, 5, 2)) == 0
    assert overlap((0, 0, 2, 2), (2.5, 0, 4.5, 2)) == pytest.approx(1.5 / 16.5)
    assert overlap((0, 0, 4, 4), (1, 1, 3, 3)) == pytest.approx(9 / 25)
    assert overlap((1, 1, 1, 1), (1, 1, 1, 1)) == 1
    assert overlap((0, 0, -2, -2), (0, 0, -2, -2)) == 0


def test_suppression_by_hand():
    first, half, far = at(0, 0, 2, 0.9), at(1, 0, 2, 0.8), at(9, 9, 2, 0.7)
    assert suppress([first, half, far], 1.0) == [first, half, far]
    assert suppress([first, half, far], 0.51) == [first, half, far]
    assert suppress([first, half, far], 6 / 12) == [first, far]
    # A chain: the middle box is dropped, so the box that overlaps mostly the middle one (1 / 5 with the first) is kept.
    end = at(2, 0, 2, 0.6)
    assert suppress([first, half, end], 0.3) == [first, end]


def pixels(box):
    left, top, right, bottom = (int(edge) for edge in box)
    return {(x, y) for x in range(left, right + 1) for y in range(top, bottom + 1)}


def naive_suppression(detections, max_overlap):
    """Suppression of boxes with integer edges by counting their pixels, highest confidence first."""
    left, kept = sorted(detections, key=lambda item: item.score), []
    while left:
        best = left.pop()
        kept.append(best)
        mine = pixels(best.box)
        left = [item for item in left if len(mine & pixels(item.box)) / len(mine | pixels(item.box)) < max_overlap]
    return kept


def test_suppression_agrees_with_the_naive_one():
    rng = np.random.default_rng(0)
    fewer = 0
    for case in range(200):
        scores = rng.permutation(1000)[: rng.integers(0, 15)] / 1000
        boxes = [at(*rng.integers(0, 12, 2), rng.integers(1, 8), score) for score in scores]
        threshold = float(rng.choice([0.1, 0.25, 0.5, 0.9]))
        ordered = sorted(boxes, key=lambda item: -item.score)
        expected = naive_suppression(boxes, threshold)
        assert suppress(ordered, threshold) == expected, case
        fewer += len(expected) < len(boxes)
    assert fewer > 50


def test_the_strongest_by_hand():
    dogs = [at(10 * i, 0, 2, score) for i, score in enumerate((0.31, 0.95, 0.3, 0.5))]
    cats = [at(0, 50, 2, 0.2, "cat"), at(9, 50, 2, 0.9, "cat")]
    kept = strongest([*dogs, *cats], threshold=0.3, limit=2)
    assert kept == {"dog": [dogs[1], dogs[3]], "cat": [cats[1]]}
    assert strongest(cats, threshold=0.9, limit=16) == {}
    assert [len(strongest(dogs * 9, threshold=0.0, limit=16)["dog"])] == [16]


@pytest.mark.parametrize(("threshold", "next_above"), [(0.3, 0.3000001), (0.9, 0.9000001)])
def test_confidences_are_compared_in_single_precision(threshold, next_above):
    """A network's 0.3 is 0.30000001192 in double precision. It is at the threshold, not above it."""
    single = float(np.float32(threshold))
    assert strongest([at(0, 0, 2, single)], threshold=threshold, limit=9) == {}
    assert strongest([at(0, 0, 2, threshold)], threshold=threshold, limit=9) == {}
    assert len(strongest([at(0, 0, 2, next_above)], threshold=threshold, limit=9)) == 1


def test_equal_confidences_keep_their_order():
    dogs = [at(10 * i, 0, 2, score) for i, score in enumerate((0.5, 0.9, 0.5, 0.5))]
    assert strongest(dogs, threshold=0.3, limit=3) == {"dog": [dogs[1], dogs[0], dogs[2]]}


def test_suppressed_detections_count_towards_the_limit():
    first, same, other = at(0, 0, 4, 0.9), at(0, 0, 4, 0.8), at(20, 0, 4, 0.7)
    assert strongest([first, same, other], threshold=0.3, limit=2, max_overlap=0.5) == {"dog": [first]}


def nearest(found, item):
    return min(found, key=lambda d: abs(d.box[0] + d.box[2] - 2 * item.x) + abs(d.box[1] + d.box[3] - 2 * item.y))


@pytest.mark.parametrize(("blur", "noise", "floor"), [(0, 0, 0.999), (0.6, 0, 0.999), (0, 8, 0.995), (0.6, 8, 0.98)])
def test_blobs_have_the_shapes_colors_and_positions_of_the_scene(blur, noise, floor):
    rng = np.random.default_rng(21)
    scenes = [world.sample_scene(rng) for _ in range(1000)]
    images = np.stack([world.render(scene, rng) for scene in scenes]).astype(float)
    if blur:
        images = ndimage.gaussian_filter(images, (0, blur, blur, 0))
    images = np.clip(np.round(images + rng.normal(0, noise, images.shape)), 0, 255).astype(np.uint8)
    shapes, colours, offsets, counts = [], [], [], []
    for scene, found in zip(scenes, find_objects(images, 6.0), strict=True):
        counts.append(len(found) == len(scene.objects))
        for item in scene.objects:
            seen = nearest(found, item)
            shapes.append(seen.label == item.shape)
            colours.append(seen.colour == item.colour)
            offsets.append(abs(seen.box[0] + seen.box[2] - 2 * item.x) / 2)
    print(f"blur {blur}, noise {noise}: shape {np.mean(shapes):.4f} of {len(shapes)}, count {np.mean(counts):.4f}")
    assert np.mean(shapes) >= floor
    assert np.mean(counts) >= 0.995
    assert np.mean(colours) >= 0.995
    assert np.mean(offsets) < 0.5


def test_a_blob_is_detected_by_its_shape_and_as_any_shape():
    scene = world.Scene((world.Object("red", "circle", 7, 7, 3.4), world.Object("blue", "square", 16, 16, 3.0)))
    image = world.render(scene, np.random.default_rng(0))
    detector = BlobDetector(6.0)
    (both,) = detector.detect(image[None], [[detector.class_of("Shapes"), detector.class_of("circle")]])
    assert sorted((item.label, item.colour, item.score) for item in both) == [
        ("circle", "red", 1.0),
        ("shape", "blue", 1.0),
        ("shape", "red", 1.0),
    ]
    assert detector.detect(image[None], [["triangle"]]) == [[]]
    with raises("reward-metadata", **{"class": "dog"}) as caught:
        detector.class_of("dog")
    assert isinstance(caught.value, UnknownClassError)
    assert caught.value.hint is not None
    assert "detector" in caught.value.hint


def test_the_box_of_a_blob_is_in_pixels():
    image = np.full((20, 30, 3), 230, np.uint8)
    image[4:10, 12:20] = (220, 35, 35)
    ((found,),) = find_objects(image[None], 6.0)
    assert found.document() == {"box": [12.0, 4.0, 20.0, 10.0], "label": "square", "colour": "red", "score": 1.0}


def test_auto_uses_blobs_for_small_images():
    choice = DetectorChoice(DetectorOptions(), default="/nonexistent/detector", floor=0.0)
    choice.set_up("cpu")  # loads nothing before the first large image
    assert isinstance(choice.for_images(np.zeros((2, 64, 24, 3), np.uint8)), BlobDetector)
    always = DetectorChoice(DetectorOptions(detector="blobs"), default="/nonexistent/detector", floor=0.0)
    assert isinstance(always.for_images(np.zeros((2, 65, 24, 3), np.uint8)), BlobDetector)
