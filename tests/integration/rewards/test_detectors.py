"""Rewards with transformers detectors: one that is trained here, and an untrained one of each architecture."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support import tiny_checkpoints, tiny_detector
from support.errors import raises

from tdmr1_core.tiny import world
from tdmr1_rewards.api import RewardBatch, RewardContext
from tdmr1_rewards.builtin.detection.checkpoints import load_detector
from tdmr1_rewards.builtin.detection.colours import COLOUR_WORDS, ClipColours, crop_object
from tdmr1_rewards.builtin.detection.detections import Detection, UnknownClassError, overlap, strongest
from tdmr1_rewards.builtin.geneval import GenEval, GenEvalOptions
from tdmr1_rewards.builtin.object_count import NO_NUMBER, ObjectCount, ObjectCountOptions

pytestmark = pytest.mark.integration

STEPS = 300
"""Training steps of the detector: about half a minute on one core."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a trained detector of red, green, blue and yellow shapes."""
    folder = tmp_path_factory.mktemp("trained")
    tiny_detector.train(folder, steps=STEPS)
    return folder


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """The folder of a detector with the same classes after only two training steps."""
    folder = tmp_path_factory.mktemp("untrained")
    tiny_detector.train(folder, steps=2)
    return folder


@pytest.fixture(scope="module")
def scenes():
    """300 scenes that are not in the training data, and their images."""
    return tiny_detector.scenes_and_images(300, seed=7)


def batch_of(images, metadata, prompts=None):
    return RewardBatch(
        images=images,
        prompts=prompts or [""] * len(metadata),
        metadata=metadata,
        group_ids=[0] * len(metadata),
        image_ids=list(range(len(metadata))),
        context=RewardContext(None, 0, 0),
    )


def request(thing, count):
    return {"include": [{"class": thing, "count": count}]}


@pytest.mark.long
def test_a_trained_detector_counts(trained, scenes):
    images = scenes[1]
    first = [scene.objects[0].colour for scene in scenes[0]]
    truth = [
        sum(item.colour == colour for item in scene.objects) for colour, scene in zip(first, scenes[0], strict=True)
    ]
    reward = ObjectCount(ObjectCountOptions(detector=str(trained), score="exact", batch_size=64))
    reward.setup("cpu")

    def right(counts):
        return reward(batch_of(images, [request(f"{c} shapes", n) for c, n in zip(first, counts, strict=True)]))

    result = right(truth)
    by_count = {n: np.mean([s for s, m in zip(result.scores, truth, strict=True) if m == n]) for n in range(1, 5)}
    print(f"count right in {np.mean(result.scores):.3f} of {len(truth)};", {n: f"{v:.2f}" for n, v in by_count.items()})
    # Chance level: 0.47, the fraction of scenes with the most frequent count, one object.
    assert np.mean(result.scores) >= 0.8
    assert all(details["found"] == len(details["boxes"]) for details in result.details)
    assert np.mean(right([count % 4 + 1 for count in truth]).scores) <= 0.15


@pytest.mark.long
def test_the_boxes_of_a_trained_detector_overlap_the_objects(trained, scenes):
    detector = load_detector(str(trained), device="cpu", batch_size=64)
    overlaps = []
    for scene, found in zip(scenes[0], detector.detect(scenes[1], [tiny_detector.CLASSES] * 300), strict=True):
        confident = [item for members in strongest(found, threshold=0.5, limit=100).values() for item in members]
        for item in scene.objects:
            box = tiny_detector.box_of(item)
            overlaps.append(max((overlap(box, seen.box) for seen in confident), default=0.0))
    print(f"mean overlap with the truth {np.mean(overlaps):.3f} of {len(overlaps)} objects")
    assert np.mean(overlaps) >= 0.4


@pytest.mark.long
def test_geneval_checks_positions_with_a_trained_detector(trained, scenes):
    pairs = [(i, scene) for i, scene in enumerate(scenes[0]) if scene.relation]
    reward = GenEval(GenEvalOptions(detector=str(trained), score="strict", batch_size=64))

    def scores(opposite):
        metadata = []
        for _, scene in pairs:
            first, second = (f"{item.colour} shape" for item in scene.objects)
            relation = world.OPPOSITE[scene.relation] if opposite else scene.relation
            include = [{"class": second, "count": 1}, {"class": first, "count": 1, "position": [relation, 0]}]
            metadata.append({"tag": "position", "include": include})
        return reward(batch_of(scenes[1][[i for i, _ in pairs]], metadata)).scores

    right, wrong = np.mean(scores(False)), np.mean(scores(True))
    print(f"right relations accepted {right:.3f}, opposite ones {wrong:.3f} of {len(pairs)}")
    assert right >= 0.8
    assert wrong <= 0.05


def test_a_class_that_the_detector_does_not_know_is_reported(untrained, scenes):
    reward = ObjectCount(ObjectCountOptions(detector=str(untrained)))
    known = ["blue shape", "green shape", "red shape", "yellow shape"]
    with raises("reward-metadata", **{"class": "dog", "known": known}) as caught:
        reward(batch_of(scenes[1][:1], [request("dog", 1)]))
    assert all(name in caught.value.hint for name in known)
    result = reward(batch_of(scenes[1][:3], [request("dog", 1), request("Red Shape", 1), {}], ["", "", "no number"]))
    assert result.scores[0] is None
    assert "'dog'" in result.details[0]["reason"]
    assert result.details[1]["class"] == "red shape"
    assert result.details[2] == {"reason": NO_NUMBER}
    words = reward(batch_of(scenes[1][:2], [{}, {}], ["three red shapes", "two dogs"]))
    assert (words.details[0]["asked"], words.details[0]["class"]) == (3, "red shape")
    assert "mentions no class" in words.details[1]["reason"]


KINDS = ("yolos", "rt_detr_v2", "mask2former", "owlv2", "grounding_dino")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """One untrained checkpoint of every kind."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return {kind: getattr(tiny_checkpoints, kind)(folder / kind) for kind in (*KINDS, "clip")}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_detector_returns_detections(checkpoints, scenes, kind):
    reward = ObjectCount(ObjectCountOptions(detector=str(checkpoints[kind]), threshold=0.001, batch_size=2))
    reward.setup("cpu")
    images = [Image.fromarray(image).resize((40, 30)) for image in scenes[1][:3]]
    result = reward(batch_of(images, [request("circle", 1), request("square", 2), {}], ["", "", "an image"]))
    assert result.scores[2] is None
    boxes = [box for details in result.details[:2] for box in details["boxes"]]
    assert boxes, "an untrained detector has low confidence, but the threshold is almost 0"
    assert {box["label"] for box in boxes} <= {"circle", "square"}
    assert all(0 < box["score"] <= 1 for box in boxes)
    repeated = reward(batch_of(images, [request("circle", 1), request("square", 2), {}], ["", "", "an image"]))
    assert repeated.scores == result.scores


def test_the_detections_of_an_image_do_not_depend_on_the_batch(checkpoints, scenes):
    for kind in KINDS:
        alone = load_detector(str(checkpoints[kind]), device="cpu", batch_size=1)
        together = load_detector(str(checkpoints[kind]), device="cpu", batch_size=4)
        classes = [["circle", "square"], ["square"], ["triangle"], []]
        for one, other in zip(
            alone.detect(scenes[1][:4], classes), together.detect(scenes[1][:4], classes), strict=True
        ):
            assert [item.label for item in one] == [item.label for item in other]
            assert np.allclose([item.score for item in one], [item.score for item in other], atol=1e-5)
            assert np.allclose([item.box for item in one], [item.box for item in other], atol=1e-3)


def test_the_boxes_of_masks_enclose_them(checkpoints, scenes):
    detector = load_detector(str(checkpoints["mask2former"]), device="cpu", batch_size=2, floor=0.001)
    found = [item for items in detector.detect(scenes[1][:2], [world.SHAPES] * 2) for item in items]
    assert found
    for item in found:
        left, top, right, bottom = (int(edge) for edge in item.box)
        assert item.mask.shape == (24, 24)
        assert item.mask[top:bottom, left:right].sum() == item.mask.sum() > 0
        assert item.mask[top].any()
        assert item.mask[:, right - 1].any()


def test_a_zero_shot_detector_takes_any_class_name(checkpoints):
    detector = load_detector(str(checkpoints["owlv2"]), device="cpu", batch_size=2)
    assert detector.class_of("Red Circles") == "red circle"
    assert detector.class_in("three circles") is None
    with pytest.raises(UnknownClassError):
        load_detector(str(checkpoints["yolos"]), device="cpu", batch_size=2).class_of("red circle")


def test_a_detector_that_cannot_be_loaded_is_an_error(checkpoints, tmp_path):
    def check(detector, code, **values):
        with raises(code, **values) as caught:
            ObjectCount(ObjectCountOptions(detector=str(detector))).setup("cpu")
        assert caught.value.hint

    check(tmp_path / "nothing", "file-missing", path=str(tmp_path / "nothing"))
    check(tmp_path, "reward-weights", source=str(tmp_path))
    check(checkpoints["clip"], "reward-weights", source=str(checkpoints["clip"]), model_type="clip")
    check("nobody/nothing", "hub-unavailable", name="nobody/nothing")
    partial = tmp_path / "partial"
    partial.mkdir()
    for file in checkpoints["yolos"].iterdir():
        (partial / file.name).write_bytes(file.read_bytes())
    weights = load_file(partial / "model.safetensors")
    dropped = next(name for name in weights if name.startswith("bbox_predictor"))
    save_file({k: v for k, v in weights.items() if k != dropped}, partial / "model.safetensors", {"format": "pt"})
    check(partial, "reward-weights", source=str(partial), missing=[dropped])
    (partial / "model.safetensors").unlink()
    check(partial, "reward-weights", source=str(partial))
    (partial / "config.json").write_text(json.dumps({"model_type": "nonesuch"}))
    check(partial, "reward-weights", source=str(partial))


INKS = {"red": (255, 0, 0), "green": (0, 160, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}
EMBEDDINGS = dict(zip(COLOUR_WORDS, torch.eye(10), strict=True))


class PaletteClip:
    """A fake CLIP: the embedding of an image is the color nearest to its mean, that of a text its color word."""

    logit_scale = 1.0

    def embed_texts(self, texts):
        self.texts = texts
        return torch.stack([next(EMBEDDINGS[word] for word in COLOUR_WORDS if f" {word}" in text) for text in texts])

    def embed_images(self, images):
        means = [np.asarray(image).reshape(-1, 3).mean(axis=0) for image in images]
        return torch.stack([EMBEDDINGS[min(INKS, key=lambda name: np.abs(mean - INKS[name]).sum())] for mean in means])


def test_colors_are_classified_by_crops():
    image = np.full((20, 40, 3), 255, np.uint8)
    image[5:15, 2:12] = (255, 0, 0)
    image[5:15, 22:32] = (0, 0, 255)
    found = [Detection("car", 0.9, box) for box in ((2, 5, 12, 15), (22.4, 5, 31.6, 15), (33, 0, 33.2, 20))]
    clip = PaletteClip()
    colours = ClipColours("unused")
    colours._model = clip
    assert colours.classify(Image.fromarray(image), found * 7, "car") == ["red", "blue", "white"] * 7
    assert clip.texts[:3] == ["a photo of a red car", "a photo of a red-colored car", "a photo of a red object"]
    assert len(clip.texts) == 30


def test_pixels_outside_the_mask_are_gray():
    image = np.full((10, 10, 3), 255, np.uint8)
    mask = np.zeros((10, 10), bool)
    mask[2:6, 3:5] = True
    cut = np.asarray(crop_object(Image.fromarray(image), Detection("car", 0.9, (3, 2, 7, 6), mask)))
    assert cut.shape == (4, 4, 3)
    assert (cut[:, :2] == 255).all()
    assert (cut[:, 2:] == 0x99).all()


def test_a_transformers_clip_classifies_colors_for_geneval(checkpoints, scenes):
    options = GenEvalOptions(
        detector=str(checkpoints["mask2former"]), colour_model=str(checkpoints["clip"]), threshold=0.001
    )
    reward = GenEval(options)
    reward.setup("cpu")
    metadata = {"tag": "colors", "include": [{"class": shape, "count": 1, "color": "red"} for shape in world.SHAPES]}
    (details,) = reward(batch_of(scenes[1][:1], [metadata])).details
    seen = {entry["found"].split(" ", 1)[-1] for entry in details["conditions"] if entry["condition"] == "colour"}
    assert seen <= {*COLOUR_WORDS, "none"}
    assert seen != {"none"}
