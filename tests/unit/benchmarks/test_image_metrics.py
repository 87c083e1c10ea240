"""Image metrics: they detect the objects of rendered images, and change when an image is damaged."""

from __future__ import annotations

from collections.abc import Callable

import image_metrics
import numpy as np
import pytest
from scipy import ndimage
from support.paths import ROOT

from tdmr1_core.tiny import world

BENCHMARKS = ROOT / "benchmarks"

pytestmark = pytest.mark.unit

Scenes = tuple[np.ndarray, list[world.Scene]]


def rendered(*scenes: world.Scene, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([world.render(scene, rng) for scene in scenes])


def scene(*places: tuple[float, float, float], colour: str = "red", shape: str = "circle") -> world.Scene:
    return world.Scene(tuple(world.Object(colour, shape, *place) for place in places))


def request(number: int | None, colour: str | None, shape: str | None) -> dict[str, object]:
    return world.CountCaption(number, colour, shape).metadata


def truth(item: world.Scene) -> dict[str, object]:
    return request(len(item.objects), item.objects[0].colour, item.objects[0].shape)


@pytest.fixture(scope="module")
def counts() -> Scenes:
    rng = np.random.default_rng(1)
    scenes = [world.sample_scene(rng, pair_share=0.0) for _ in range(200)]
    return rendered(*scenes), scenes


@pytest.fixture(scope="module")
def clean(counts: Scenes) -> dict[str, np.ndarray]:
    images, scenes = counts
    measures: dict[str, np.ndarray] = image_metrics.measure_images(images, [truth(item) for item in scenes])
    return measures


def test_clean_count_scenes_are_measured_correctly(counts: Scenes, clean: dict[str, np.ndarray]) -> None:
    for name in ("count_right", "shape_right", "colour_right"):
        assert clean[name].mean() >= 0.97, name
    assert clean["crispness"].min() > 0.95
    assert clean["background_noise"].max() < 0.01
    assert clean["size_error"].max() < 0.1
    centres = np.array([np.mean([(item.x, item.y) for item in scene.objects], axis=0) for scene in counts[1]])
    assert np.abs(clean["position_x"] - centres[:, 0]).max() < 0.1
    assert np.abs(clean["position_y"] - centres[:, 1]).max() < 0.1


def test_clean_pair_scenes_are_measured_correctly() -> None:
    rng = np.random.default_rng(2)
    scenes = [world.sample_scene(rng, pair_share=1.0) for _ in range(60)]
    kinds = [[(item.colour, item.shape) for item in scene.objects] for scene in scenes]
    metadata = [
        world.PairCaption(first, scene.relation, second).metadata
        for (first, second), scene in zip(kinds, scenes, strict=True)
    ]
    measures = image_metrics.measure_images(rendered(*scenes), metadata)
    for name in ("count_right", "shape_right", "colour_right"):
        assert measures[name].mean() >= 0.97, name


def test_an_object_is_located_to_a_tenth_of_a_pixel() -> None:
    (analysis,) = image_metrics.analyse(rendered(scene((9.3, 14.6, 3.2), colour="blue", shape="triangle")))
    (found,) = analysis.objects
    assert (found.shape, found.colour) == ("triangle", "blue")
    assert (found.x, found.y, found.radius) == pytest.approx((9.3, 14.6, 3.2), abs=0.1)
    assert 0 <= found.residual < 0.05


@pytest.mark.parametrize(("shape", "gap"), [("circle", -0.5), ("square", 0.0), ("triangle", 0.0)])
def test_touching_objects_are_separated(shape: str, gap: float) -> None:
    left, right = 12 - 3 - gap / 2, 12 + 3 + gap / 2
    image = rendered(scene((left, 10, 3.0), (right, 13, 3.0), shape=shape))
    assert image_metrics.measure_images(image, [request(2, "red", shape)])["count_right"] == [1.0]


def noisy(images: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(3).normal(0, 16, images.shape)
    return np.clip(images + noise, 0, 255).astype(np.uint8)


def blurred(images: np.ndarray) -> np.ndarray:
    smooth: np.ndarray = ndimage.gaussian_filter(images, (0, 0.8, 0.8, 0))
    return smooth


@pytest.mark.parametrize(("damage", "noise"), [(noisy, 0.03), (blurred, 0.0)])
def test_damage_lowers_the_crispness_of_every_image(
    counts: Scenes, clean: dict[str, np.ndarray], damage: Callable[[np.ndarray], np.ndarray], noise: float
) -> None:
    measures = image_metrics.measure_images(damage(counts[0]), [truth(item) for item in counts[1]])
    assert (measures["crispness"] < clean["crispness"] - 0.1).all()
    assert (measures["background_noise"] >= noise).all()
    assert measures["count_right"].mean() > 0.95


def test_wrong_shape_color_and_number_are_distinguished() -> None:
    image = rendered(scene((6, 6, 3.0), (17, 6, 3.0), (12, 17, 3.0), colour="green", shape="square"))
    images = np.repeat(image, 4, axis=0)
    requests = [(3, "green", "square"), (3, "green", "circle"), (3, "blue", "square"), (2, "green", "square")]
    measures = image_metrics.measure_images(images, [request(*item) for item in requests])
    assert measures["shape_right"].tolist() == [1, 0, 1, 1]
    assert measures["colour_right"].tolist() == [1, 1, 0, 1]
    assert measures["count_right"].tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("shape", world.SHAPES)
def test_large_and_small_objects_are_measured(shape: str) -> None:
    images = rendered(*(scene((12, 12, radius), shape=shape) for radius in (2.2, 3.0, 8.0)))
    measures = image_metrics.measure_images(images, [request(1, "red", shape)] * 3)
    assert measures["size"] == pytest.approx([2.2, 3.0, 8.0], abs=0.1)
    assert measures["size_error"] == pytest.approx([0.5, 0.0, 4.4], abs=0.1)
    assert measures["shape_right"].tolist() == [1, 1, 1]


def test_stray_ink_lowers_the_crispness() -> None:
    image = rendered(scene((8, 8, 3.0)))
    smeared = image.copy()
    smeared[:, 18, 2:22] = (200, 60, 60)
    clean, stray = image_metrics.measure_images(np.concatenate([image, smeared]), [request(1, "red", "circle")] * 2)[
        "crispness"
    ]
    assert stray < clean - 0.2


def test_the_spread_is_the_deviation_of_the_centers() -> None:
    measures = image_metrics.measure_images(rendered(scene((6, 9, 3.0), (18, 15, 3.0))), [request(2, "red", "circle")])
    assert (measures["spread_x"][0], measures["spread_y"][0]) == pytest.approx((6, 3), abs=0.1)


def test_binding_and_relation_of_pairs_are_measured() -> None:
    circle = world.Object("red", "circle", 7.0, 12.0, 3.0)
    square = world.Object("blue", "square", 17.0, 13.0, 3.0)
    images = rendered(world.Scene((circle, square), "left of"))
    requests = {
        "a red circle left of a blue square": (1.0, 1.0),
        "a blue square right of a red circle": (1.0, 1.0),
        "a red circle right of a blue square": (1.0, 0.0),
        "a red circle above a blue square": (1.0, 0.0),  # it is above, but farther to the left
        "a blue circle left of a red square": (0.0, 0.0),
        "a red circle left of a red square": (0.0, 0.0),
    }
    for text, expected in requests.items():
        words = text.split()
        pair = world.PairCaption((words[1], words[2]), " ".join(words[3:-3]), (words[-2], words[-1]))
        measures = image_metrics.measure_images(images, [pair.metadata])
        assert (measures["binding_right"][0], measures["relation_right"][0]) == expected, text


def test_pairs_of_the_world_are_correct() -> None:
    rng = np.random.default_rng(3)
    scenes = [world.sample_scene(rng, pair_share=1.0) for _ in range(100)]
    captions = [
        world.PairCaption((a.colour, a.shape), item.relation, (b.colour, b.shape))
        for item in scenes
        for a, b in [item.objects]
    ]
    measures = image_metrics.measure_images(rendered(*scenes), [caption.metadata for caption in captions])
    assert measures["binding_right"].mean() >= 0.95
    assert measures["relation_right"].mean() >= 0.95


def test_undefined_metrics_are_nan() -> None:
    blank = np.full((1, 24, 24, 3), 220, np.uint8)
    empty = image_metrics.measure_images(blank, [request(2, "red", "circle")])
    for name in ("shape_right", "colour_right", "size", "size_error", "position_x", "spread_x"):
        assert np.isnan(empty[name]).all(), name
    for name in ("found", "count_right", "crispness", "background_noise"):
        assert empty[name] == [0.0], name
    vague = image_metrics.measure_images(rendered(scene((12, 12, 3.0))), [request(None, None, None)])
    for name in ("shape_right", "colour_right", "count_right", "spread_x"):
        assert np.isnan(vague[name]).all(), name


def test_images_of_another_type_or_number_are_rejected() -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        image_metrics.analyse(np.zeros((1, 24, 24, 3), np.float32))
    with pytest.raises(ValueError, match="1 images but 0 requests"):
        image_metrics.measure_images(np.zeros((1, 24, 24, 3), np.uint8), [])


def test_diversity_of_moved_equal_and_single_images() -> None:
    first, moved = rendered(scene((8, 8, 3.0)), seed=0)[0], rendered(scene((11, 12, 3.0)), seed=0)[0]
    images = np.stack([first, moved, first, first, first])
    measures = image_metrics.diversity(images, np.array([7, 7, 2, 2, 9]))
    assert measures["group"].tolist() == [2, 7, 9]
    assert measures["pixel_distance"][0] == 0
    assert measures["pixel_distance"][1] > 0.1
    assert measures["layout_distance"][:2] == pytest.approx([0, 5], abs=0.1)
    assert measures["position_spread"] == pytest.approx([0, 2.5, 0], abs=0.1)
    assert np.isnan(measures["pixel_distance"][2])
    assert np.isnan(measures["layout_distance"][2])


def test_the_pixel_distance_of_black_and_white_is_one() -> None:
    images = np.stack([np.zeros((24, 24, 3), np.uint8), np.full((24, 24, 3), 255, np.uint8)])
    measures = image_metrics.diversity(images, np.zeros(2, int))
    assert measures["pixel_distance"] == pytest.approx([1.0])
    assert np.isnan(measures["position_spread"]).all()


def test_the_metrics_are_independent_of_the_rewards() -> None:
    source = (BENCHMARKS / "image_metrics.py").read_text()
    assert "tdmr1_rewards" not in source
    assert "ndimage" not in source
