"""Blob counts compared with scenes of the tiny world, requests in prompts and metadata, and scores by hand."""

import time

import numpy as np
import pytest
from scipy import ndimage
from support.errors import raises

from tdmr1_core.tiny import world
from tdmr1_rewards.api import RewardBatch, RewardContext
from tdmr1_rewards.builtin.detection.blobs import HUE_RANGES, count_objects
from tdmr1_rewards.builtin.object_count import NO_NUMBER, ObjectCount, ObjectCountOptions, examples

pytestmark = pytest.mark.unit

ANY = tuple(HUE_RANGES)


def score(images, prompts, metadata=None, **options):
    count = len(prompts)
    batch = RewardBatch(
        images=np.asarray(images),
        prompts=prompts,
        metadata=metadata or [{}] * count,
        group_ids=[0] * count,
        image_ids=list(range(count)),
        context=RewardContext(None, 0, 0),
    )
    return ObjectCount(ObjectCountOptions(**options))(batch)


def draw(*objects, relation=None):
    """A scene of (color, shape, x, y, radius)."""
    scene = world.Scene(tuple(world.Object(*item) for item in objects), relation)
    return world.render(scene, np.random.default_rng(0))


def count_scenes(number, seed):
    rng = np.random.default_rng(seed)
    scenes = [world.sample_scene(rng, pair_share=0.0) for _ in range(number)]
    images = np.stack([world.render(scene, rng) for scene in scenes])
    return images, [scene.objects[0].colour for scene in scenes], [len(scene.objects) for scene in scenes]


def blurred_and_noisy(images, blur, noise, seed=0):
    smooth = ndimage.gaussian_filter(images.astype(float), (0, blur, blur, 0)) if blur else images.astype(float)
    rng = np.random.default_rng(seed)
    return np.clip(np.round(smooth + rng.normal(0, noise, images.shape)), 0, 255).astype(np.uint8)


RED_TWO = draw(("red", "circle", 7, 7, 3.2), ("red", "square", 16, 16, 3.0))


@pytest.mark.parametrize(("blur", "noise"), [(0, 0), (0.6, 0), (0, 8), (0.6, 8)])
def test_counts_agree_with_the_scenes(blur, noise):
    images, colours, numbers = count_scenes(2000, seed=11)
    images = blurred_and_noisy(images, blur, noise)
    of_colour = np.mean(np.equal(count_objects(images, [(colour,) for colour in colours], 6.0), numbers))
    of_any = np.mean(np.equal(count_objects(images, [ANY] * len(images), 6.0), numbers))
    assert of_colour >= 0.995
    assert of_any >= 0.995


def test_other_colors_are_not_counted():
    rng = np.random.default_rng(5)
    scenes = [world.sample_scene(rng, pair_share=1.0) for _ in range(1000)]
    images = np.stack([world.render(scene, rng) for scene in scenes])
    first, absent = [], []
    for scene in scenes:
        drawn = [item.colour for item in scene.objects]
        first.append((drawn[0],))
        absent.append((next(colour for colour in world.COLOURS if colour not in drawn),))
    assert np.mean(np.equal(count_objects(images, first, 6.0), 1)) >= 0.995
    assert count_objects(images, absent, 6.0) == [0] * 1000
    assert np.mean(np.equal(count_objects(images, [ANY] * 1000, 6.0), 2)) >= 0.995


@pytest.mark.parametrize("shade", [0, 60, 128, 255])
def test_an_empty_image_of_any_brightness_has_no_objects(shade):
    rng = np.random.default_rng(0)
    image = np.clip(np.full((24, 24, 3), shade) + rng.normal(0, 8, (24, 24, 3)), 0, 255).astype(np.uint8)
    assert count_objects(image[None], [ANY], 1.0) == [0]
    result = score([image], ["two red circles"])
    assert result.scores == [0.0]
    assert result.details == [{"asked": 2, "found": 0}]


def test_touching_objects_of_one_color_are_one_and_of_two_colors_are_two():
    left, right = ("circle", 8, 12, 3.5), ("circle", 14.5, 12, 3.5)
    assert count_objects(draw(("blue", *left), ("blue", *right))[None], [("blue",)], 6.0) == [1]
    mixed = blurred_and_noisy(draw(("red", *left), ("blue", *right))[None], 0.6, 0)
    assert count_objects(mixed.repeat(3, 0), [("red",), ("blue",), ANY], 6.0) == [1, 1, 2]


def test_blurred_edges_are_not_counted_as_objects():
    # With the smallest min_area, the blurred edge of one large object must not be counted as more objects.
    for colour in world.COLOURS:
        image = draw((colour, "triangle", 12, 12, 9.0))[None]
        for blur in (0.5, 1.0, 1.5, 2.0):
            assert count_objects(blurred_and_noisy(image, blur, 0), [ANY], 1.0) == [1], (colour, blur)


def test_areas_that_touch_at_a_corner_are_connected_and_images_are_not():
    image = np.full((8, 8, 3), 255, np.uint8)
    image[1:4, 1:4] = image[4:7, 4:7] = (220, 30, 30)
    edge_to_edge = np.full((8, 8, 3), (220, 30, 30), np.uint8)
    assert count_objects(np.stack([image, edge_to_edge, edge_to_edge]), [("red",)] * 3, 6.0) == [1, 1, 1]


def test_an_area_below_min_area_is_not_counted():
    image = np.full((12, 12, 3), 200, np.uint8)
    image[2:4, 2:5] = (20, 160, 50)
    assert count_objects(image[None], [("green",)], 6.0) == [1]
    assert count_objects(image[None], [("green",)], 6.5) == [0]
    assert score([image], ["one green square"], min_area=7).scores == [0.0]


@pytest.mark.parametrize(
    ("colour", "rgb"),
    [
        ("red", (255, 0, 0)),
        ("red", (200, 20, 30)),
        ("orange", (255, 140, 0)),
        ("yellow", (255, 230, 0)),
        ("green", (0, 128, 0)),
        ("blue", (0, 0, 255)),
        ("blue", (30, 144, 255)),
        ("purple", (128, 0, 128)),
    ],
)
def test_every_color_is_distinguished_from_the_others(colour, rgb):
    image = np.full((10, 10, 3), 230, np.uint8)
    image[3:7, 3:7] = rgb
    counts = count_objects(np.stack([image] * len(ANY)), [(name,) for name in ANY], 6.0)
    assert dict(zip(ANY, counts, strict=True)) == {name: int(name == colour) for name in ANY}


@pytest.mark.parametrize(
    ("kind", "requested", "expected"),
    [
        ("exact", "two", 1.0),
        ("exact", "three", 0.0),
        ("graded", "two", 1.0),
        ("graded", "three", 2 / 3),
        ("graded", "one", 0.0),
        ("graded", "8", 0.25),
        ("mixed", "two", 1.0),
        ("mixed", "four", 0.25),
        ("mixed", "one", 0.0),
    ],
)
def test_scores_by_hand(kind, requested, expected):
    assert score([RED_TWO], [f"{requested} red shapes"], score=kind).scores == pytest.approx([expected], abs=1e-12)


def test_the_default_score_is_mixed():
    assert score([RED_TWO], ["four red shapes"]).scores == [0.25]


def test_metadata_take_precedence_over_the_prompt():
    include = {"include": [{"class": "circle", "count": 2, "color": "red"}], "exclude": []}
    of_any = {"include": [{"class": "circle", "count": 3}]}
    without_count = {"include": [{"class": "circle", "color": "blue"}]}
    result = score([RED_TWO] * 3, ["nine blue circles", "one blue", "two red"], [include, of_any, without_count])
    assert result.details == [{"asked": 2, "found": 2}, {"asked": 3, "found": 2}, {"asked": 2, "found": 2}]


def test_every_caption_requests_the_same_in_words_and_in_metadata():
    captions = world.count_captions()
    assert len(captions) == 48
    prompts = [caption.text for caption in captions]
    by_words = score([RED_TWO] * 48, prompts)
    by_metadata = score([RED_TWO] * 48, [""] * 48, [caption.metadata for caption in captions])
    assert by_words.scores == by_metadata.scores
    assert by_words.details == by_metadata.details
    assert {(each["asked"], each["found"]) for each in by_words.details} == {
        (n, f) for n in (1, 2, 3, 4) for f in (0, 2)
    }


@pytest.mark.parametrize(
    ("prompt", "requested", "found"),
    [
        ("Three RED circles", 3, 2),
        ("a photo of 12 red shapes", 12, 2),
        ("ten shapes", 10, 3),
        ("two oranges, shapes", 2, 3),
        ("two green triangles", 2, 1),
    ],
)
def test_requests_in_words(prompt, requested, found):
    image = draw(("red", "circle", 6, 6, 3.2), ("red", "square", 17, 17, 3.0), ("green", "triangle", 17, 6, 3.4))
    assert score([image], [prompt]).details == [{"asked": requested, "found": found}]


@pytest.mark.parametrize("prompt", ["red circles", "a red circle left of a blue square", "someone, often 0 shapes", ""])
def test_a_prompt_without_a_number_gives_no_score(prompt):
    result = score([RED_TWO] * 2, [prompt, "two red circles"])
    assert result.scores == [None, 1.0]
    assert result.details == [{"reason": NO_NUMBER}, {"asked": 2, "found": 2}]


@pytest.mark.parametrize("colour", ["pink", "brown", "black", "white"])
def test_a_color_that_hue_does_not_determine_gives_no_score(colour):
    metadata = {"include": [{"class": "shape", "count": 2, "color": colour}]}
    for result in (score([RED_TWO], [f"two {colour} shapes"]), score([RED_TWO], [""], [metadata])):
        assert result.scores == [None]
        assert result.details == [{"asked": 2, "reason": f"hue does not determine the color {colour}"}]


@pytest.mark.parametrize("count", [0, -1, "two", 2.0, True, None])
def test_an_invalid_count_is_an_error_that_names_the_prompt(count):
    with raises("reward-metadata", prompt="some circles", found=count):
        score([RED_TWO], ["some circles"], [{"include": [{"class": "circle", "count": count}]}])


def test_good_examples_score_1_and_bad_ones_less():
    given = examples()
    scores = score([each.image for each in given], [each.prompt for each in given]).scores
    assert [value == 1.0 for value in scores] == [each.good for each in given] == [True, False, False]


def test_a_large_image_needs_a_checkpoint_unless_the_detector_is_blobs():
    large = np.kron(RED_TWO, np.ones((3, 3, 1), np.uint8))
    assert score([large], ["two red shapes"], detector="blobs").scores == [1.0]
    with raises("file-missing", path="./nowhere"):
        score([large], ["two red shapes"], detector="./nowhere")


def test_a_batch_of_a_training_step_takes_milliseconds():
    images, colours, numbers = count_scenes(96, seed=2)
    prompts = [f"{number} {colour} shapes" for number, colour in zip(numbers, colours, strict=True)]
    times = []
    for _ in range(5):
        begin = time.process_time()
        result = score(images, prompts)
        times.append(time.process_time() - begin)
    assert np.mean(np.equal(result.scores, 1.0)) >= 0.98
    assert min(times) < 0.03
