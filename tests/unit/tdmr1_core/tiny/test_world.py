"""The embedded world: images show the scene, and captions are wrong at the configured rates."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import pytest

from tdmr1_core.tiny.world import (
    COLOURS,
    IMAGE_SIZE,
    MIN_GAP,
    NUMBERS,
    OPPOSITE,
    PAIRS_NOISE,
    PALETTE,
    SHAPES,
    CaptionNoise,
    CountCaption,
    Object,
    PairCaption,
    Scene,
    caption,
    count_captions,
    make_dataset,
    pair_captions,
    render,
    sample_scene,
    training_captions,
    vocabulary,
)

pytestmark = pytest.mark.unit
NO_NOISE = CaptionNoise(0, 0, 0, 0, 0, 0)


def test_a_data_set_is_a_function_of_its_seed():
    one, other = make_dataset(50, 3, CaptionNoise()), make_dataset(50, 3, CaptionNoise())
    assert np.array_equal(one[0], other[0])
    assert one[1:] == other[1:]
    assert not np.array_equal(one[0], make_dataset(50, 4, CaptionNoise())[0])


def test_an_ordered_data_set_names_the_left_or_upper_object_first():
    _, captions, scenes = make_dataset(4000, 5, PAIRS_NOISE, 0.9, ordered=True)
    pairs = [(text, scene) for text, scene in zip(captions, scenes, strict=True) if scene.relation]
    assert len(pairs) / 4000 == pytest.approx(0.9, abs=0.02)
    related = [(text, scene) for text, scene in pairs if " and " not in text]
    correct = [text.startswith(PairCaption.of(scene).ordered.text) for text, scene in related]
    assert np.mean(correct) == pytest.approx(0.8 * 0.88, abs=0.03)
    assert not [text for text in captions if "right of" in text or "below" in text]
    _, true_captions, scenes = make_dataset(500, 6, NO_NOISE, 1.0, ordered=True)
    for text, scene in zip(true_captions, scenes, strict=True):
        assert " and " in text or text == PairCaption.of(scene).ordered.text


def test_ordered_captions_make_the_same_request():
    red, blue = ("red", "circle"), ("blue", "square")
    assert PairCaption(red, "right of", blue).ordered.text == "a blue square left of a red circle"
    assert PairCaption(red, "below", blue).ordered == PairCaption(blue, "above", red)
    for relation in ("left of", "above", None):
        assert PairCaption(red, relation, blue).ordered == PairCaption(red, relation, blue)


def test_objects_do_not_touch_each_other_or_the_border():
    rng = np.random.default_rng(0)
    for _ in range(300):
        objects = sample_scene(rng).objects
        for index, one in enumerate(objects):
            assert one.radius <= one.x <= IMAGE_SIZE - one.radius
            assert one.radius <= one.y <= IMAGE_SIZE - one.radius
            for other in objects[index + 1 :]:
                assert np.hypot(one.x - other.x, one.y - other.y) >= one.radius + other.radius + MIN_GAP - 1e-9


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("colour", COLOURS)
def test_an_object_has_its_color_at_its_center_and_the_background_at_the_corners(shape, colour):
    image = render(Scene((Object(colour, shape, 12.0, 12.0, 3.4),)), np.random.default_rng(1))
    assert np.abs(image[12, 12] / 255 - PALETTE[colour]).max() < 0.06
    corners = image[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == corners[0]).all()
    assert corners.min() >= 200


def test_shapes_have_their_geometric_area():
    radius, area = 3.0, {}
    for shape in SHAPES:
        image = render(Scene((Object("red", shape, 12.0, 12.0, radius),)), np.random.default_rng(2)).astype(float)
        background, ink = image[0, 0], image[12, 12]
        area[shape] = ((image - background) / (ink - background))[..., 1].sum()
    assert area["circle"] == pytest.approx(np.pi * radius**2, rel=0.03)
    assert area["square"] == pytest.approx((2 * 0.89 * radius) ** 2, rel=0.05)
    assert area["triangle"] == pytest.approx((1.95 * radius) ** 2 / 2, rel=0.08)


def test_images_show_the_relation():
    rng = np.random.default_rng(5)
    for _ in range(200):
        scene = sample_scene(rng, pair_share=1.0)
        first, second = scene.objects
        shown = {
            "left of": first.x < second.x,
            "right of": first.x > second.x,
            "above": first.y < second.y,
            "below": first.y > second.y,
        }
        assert shown[scene.relation]


def test_captions_without_noise_are_true():
    rng = np.random.default_rng(6)
    for _ in range(300):
        scene = sample_scene(rng)
        words = caption(scene, rng, NO_NOISE)
        first = scene.objects[0]
        if isinstance(words, CountCaption):
            assert (words.colour, words.shape) == (first.colour, first.shape)
            assert words.number == len(scene.objects) or words.number is None
            assert words.number is not None or CountCaption(len(scene.objects), first.colour, first.shape).held_out
        else:
            assert words.first == (first.colour, first.shape)
            assert words.relation in (scene.relation, None)


@pytest.mark.parametrize(
    ("noise", "what"), [("wrong_number", "number"), ("wrong_side", "side"), ("swapped_colours", "swap")]
)
def test_each_kind_of_noise_has_its_rate(noise, what):
    rng = np.random.default_rng(7)
    rates = CaptionNoise(**{**vars(NO_NOISE), noise: 0.4})
    wrong = {"number": [], "side": [], "swap": []}
    for _ in range(4000):
        scene = sample_scene(rng)
        words = caption(scene, rng, rates)
        if isinstance(words, CountCaption):
            if words.number is not None:
                wrong["number"].append(words.number != len(scene.objects))
        else:
            wrong["swap"].append(words.first[0] != scene.objects[0].colour)
            if words.relation is not None:
                wrong["side"].append(words.relation != scene.relation)
                assert words.relation in (scene.relation, OPPOSITE[scene.relation])
    for kind, seen in wrong.items():
        assert np.mean(seen) == pytest.approx(0.4 if kind == what else 0.0, abs=0.04 if kind == what else 0)


def test_held_out_captions_are_never_trained_on():
    _, captions, _ = make_dataset(6000, 8, CaptionNoise())
    known = {entry.text for entry in training_captions()}
    assert set(captions) <= known
    for held_out in [*count_captions(held_out=True), *pair_captions(held_out=True)]:
        assert held_out.text not in known
    for trained in count_captions(held_out=False):
        assert trained.text in known


def test_held_out_captions_are_balanced():
    held_out = count_captions(held_out=True)
    assert len(held_out) == len(count_captions()) // 4 == 12
    assert {c.number for c in held_out} == set(range(1, len(NUMBERS) + 1))
    assert {(c.colour, c.shape) for c in held_out} == {(colour, shape) for colour in COLOURS for shape in SHAPES}
    assert len(pair_captions(held_out=True)) == len(pair_captions()) // 4


def test_words_and_metadata():
    assert CountCaption(1, "red", "circle").text == "one red circle"
    assert CountCaption(3, "blue", None).text == "three blue shapes"
    assert CountCaption(None, None, "square").text == "squares"
    assert CountCaption(2, "red", "circle").metadata["include"] == [{"class": "circle", "count": 2, "color": "red"}]
    pair = PairCaption(("red", "circle"), "left of", ("blue", "square"))
    assert pair.text == "a red circle left of a blue square"
    assert pair.metadata["include"][1]["position"] == ["left of", 0]
    assert {"a", "red", "circle", "left", "of", "blue", "square"} <= set(vocabulary())


def test_the_packaged_tokenizer_knows_every_word_and_truncates_no_caption():
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(files("tdmr1_core") / "tiny" / "pipeline" / "tokenizer")
    assert [tokenizer.tokenize(word) for word in vocabulary()] == [[f"{word}</w>"] for word in vocabulary()]
    every = [entry.text for entry in (*training_captions(), *count_captions(), *pair_captions())]
    assert max(map(len, tokenizer(every, truncation=False).input_ids)) <= tokenizer.model_max_length
