"""Rewards with genuine detectors of transformers: one that has learnt to see, and one of every other kind."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support import tiny_checkpoints, tiny_detector

from tdmr1_core.tiny import world
from tdmr1_rewards.api import RewardBatch, RewardContext
from tdmr1_rewards.builtin.detection.checkpoints import load_detector
from tdmr1_rewards.builtin.detection.colours import COLOUR_WORDS, ClipColours, cut_out
from tdmr1_rewards.builtin.detection.detections import Detection, UnknownClassError, overlap, strongest
from tdmr1_rewards.builtin.geneval import GenEval, GenEvalOptions
from tdmr1_rewards.builtin.object_count import ObjectCount, ObjectCountOptions
from tdmr1_rewards.errors import Tdmr1Error

pytestmark = pytest.mark.integration

STEPS = 300
"""Of the learned detector's training: about half a minute of one core."""


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """The folder of a detector of red, green, blue and yellow shapes."""
    folder = tmp_path_factory.mktemp("learned")
    tiny_detector.train(folder, steps=STEPS)
    return folder


@pytest.fixture(scope="module")
def scenes():
    """300 scenes that it was not trained on, and their pictures."""
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


def asking(thing, count):
    return {"include": [{"class": thing, "count": count}]}


def test_a_learned_detector_counts(learned, scenes):
    images = scenes[1]
    first = [scene.objects[0].colour for scene in scenes[0]]
    truth = [
        sum(item.colour == colour for item in scene.objects) for colour, scene in zip(first, scenes[0], strict=True)
    ]
    reward = ObjectCount(ObjectCountOptions(detector=str(learned), score="exact", batch_size=64))
    reward.setup("cpu")

    def right(counts):
        return reward(batch_of(images, [asking(f"{c} shapes", n) for c, n in zip(first, counts, strict=True)]))

    result = right(truth)
    by_count = {n: np.mean([s for s, m in zip(result.scores, truth, strict=True) if m == n]) for n in range(1, 5)}
    print(f"count right in {np.mean(result.scores):.3f} of {len(truth)};", {n: f"{v:.2f}" for n, v in by_count.items()})
    # Chance: one object is asked for most often, in 47 % of the scenes.
    assert np.mean(result.scores) >= 0.8
    assert all(told["found"] == len(told["boxes"]) for told in result.details)
    assert np.mean(right([count % 4 + 1 for count in truth]).scores) <= 0.15


def test_its_boxes_lie_where_the_objects_are(learned, scenes):
    detector = load_detector(str(learned), device="cpu", batch_size=64)
    overlaps = []
    for scene, found in zip(scenes[0], detector.detect(scenes[1], [tiny_detector.CLASSES] * 300), strict=True):
        sure = [item for members in strongest(found, threshold=0.5, limit=100).values() for item in members]
        for item in scene.objects:
            box = tiny_detector.box_of(item)
            overlaps.append(max((overlap(box, seen.box) for seen in sure), default=0.0))
    print(f"mean overlap with the truth {np.mean(overlaps):.3f} of {len(overlaps)} objects")
    assert np.mean(overlaps) >= 0.4


def test_geneval_judges_positions_with_it(learned, scenes):
    pairs = [(i, scene) for i, scene in enumerate(scenes[0]) if scene.relation]
    reward = GenEval(GenEvalOptions(detector=str(learned), score="strict", batch_size=64))

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


def test_what_the_detector_does_not_know(learned, scenes):
    reward = ObjectCount(ObjectCountOptions(detector=str(learned)))
    with pytest.raises(Tdmr1Error, match="no 'dog' among its 4 classes") as caught:
        reward(batch_of(scenes[1][:1], [asking("dog", 1)]))
    assert caught.value.hint == "known: blue shape, green shape, red shape, yellow shape"
    result = reward(batch_of(scenes[1][:3], [asking("dog", 1), asking("Red Shape", 1), {}], ["", "", "no number"]))
    assert result.scores[0] is None
    assert "'dog'" in result.details[0]["reason"]
    assert result.details[1]["class"] == "red shape"
    assert result.details[2] == {"reason": "no number is asked for"}
    words = reward(batch_of(scenes[1][:2], [{}, {}], ["three red shapes", "two dogs"]))
    assert (words.details[0]["asked"], words.details[0]["class"]) == (3, "red shape")
    assert "names no class" in words.details[1]["reason"]


KINDS = ("yolos", "rt_detr_v2", "mask2former", "owlv2", "grounding_dino")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """One untrained directory of every kind."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return {kind: getattr(tiny_checkpoints, kind)(folder / kind) for kind in (*KINDS, "clip")}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_detector_answers(checkpoints, scenes, kind):
    reward = ObjectCount(ObjectCountOptions(detector=str(checkpoints[kind]), threshold=0.001, batch_size=2))
    reward.setup("cpu")
    images = [Image.fromarray(image).resize((40, 30)) for image in scenes[1][:3]]
    result = reward(batch_of(images, [asking("circle", 1), asking("square", 2), {}], ["", "", "a picture"]))
    assert result.scores[2] is None
    boxes = [box for told in result.details[:2] for box in told["boxes"]]
    assert boxes, "an untrained detector is sure of nothing, but the threshold is next to nothing"
    assert {box["label"] for box in boxes} <= {"circle", "square"}
    assert all(0 < box["score"] <= 1 for box in boxes)
    again = reward(batch_of(images, [asking("circle", 1), asking("square", 2), {}], ["", "", "a picture"]))
    assert again.scores == result.scores


def test_a_pictures_answer_does_not_depend_on_its_neighbours(checkpoints, scenes):
    for kind in KINDS:
        alone = load_detector(str(checkpoints[kind]), device="cpu", batch_size=1)
        together = load_detector(str(checkpoints[kind]), device="cpu", batch_size=4)
        asked = [["circle", "square"], ["square"], ["triangle"], []]
        for one, other in zip(alone.detect(scenes[1][:4], asked), together.detect(scenes[1][:4], asked), strict=True):
            assert [item.label for item in one] == [item.label for item in other]
            assert np.allclose([item.score for item in one], [item.score for item in other], atol=1e-5)
            assert np.allclose([item.box for item in one], [item.box for item in other], atol=1e-3)


def test_masks_come_with_the_boxes_around_them(checkpoints, scenes):
    detector = load_detector(str(checkpoints["mask2former"]), device="cpu", batch_size=2, floor=0.001)
    found = [item for items in detector.detect(scenes[1][:2], [world.SHAPES] * 2) for item in items]
    assert found
    for item in found:
        left, top, right, bottom = (int(edge) for edge in item.box)
        assert item.mask.shape == (24, 24)
        assert item.mask[top:bottom, left:right].sum() == item.mask.sum() > 0
        assert item.mask[top].any()
        assert item.mask[:, right - 1].any()


def test_a_zero_shot_detector_is_asked_in_any_words(checkpoints):
    detector = load_detector(str(checkpoints["owlv2"]), device="cpu", batch_size=2)
    assert detector.class_of("Red Circles") == "red circle"
    assert detector.class_in("three circles") is None
    with pytest.raises(UnknownClassError):
        load_detector(str(checkpoints["yolos"]), device="cpu", batch_size=2).class_of("red circle")


def test_what_cannot_be_loaded_is_told_in_a_sentence(checkpoints, tmp_path):
    def problem(source):
        with pytest.raises(Tdmr1Error) as caught:
            ObjectCount(ObjectCountOptions(detector=str(source))).setup("cpu")
        assert caught.value.hint
        return caught.value.message

    assert problem(tmp_path / "nothing") == f"there is no folder '{tmp_path / 'nothing'}' with a detector"
    assert problem(tmp_path) == f"the folder {tmp_path} holds no config.json"
    assert problem(checkpoints["clip"]) == f"{checkpoints['clip']} is a clip model, which finds no objects"
    assert problem("nobody/nothing").startswith(
        "the detector nobody/nothing is not on this machine and can't be fetched"
    )
    partial = tmp_path / "partial"
    partial.mkdir()
    for file in checkpoints["yolos"].iterdir():
        (partial / file.name).write_bytes(file.read_bytes())
    weights = load_file(partial / "model.safetensors")
    dropped = next(name for name in weights if name.startswith("bbox_predictor"))
    save_file({k: v for k, v in weights.items() if k != dropped}, partial / "model.safetensors", {"format": "pt"})
    assert problem(partial) == f"the detector {partial} has no weights for 1 of its parts, such as {dropped}"
    (partial / "model.safetensors").unlink()
    assert problem(partial).startswith(f"the detector in {partial} can't be loaded: ")
    (partial / "config.json").write_text(json.dumps({"model_type": "nonesuch"}))
    assert problem(partial).startswith(f"the detector in {partial} can't be loaded: ")


INKS = {"red": (255, 0, 0), "green": (0, 160, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}
EMBEDDINGS = dict(zip(COLOUR_WORDS, torch.eye(10), strict=True))


class PaletteClip:
    """Stands for a CLIP that embeds a picture as the nearest ink to its mean colour, and a text as its colour word."""

    logit_scale = 1.0

    def embed_texts(self, texts):
        self.texts = texts
        return torch.stack([next(EMBEDDINGS[word] for word in COLOUR_WORDS if f" {word}" in text) for text in texts])

    def embed_images(self, images):
        means = [np.asarray(image).reshape(-1, 3).mean(axis=0) for image in images]
        return torch.stack([EMBEDDINGS[min(INKS, key=lambda name: np.abs(mean - INKS[name]).sum())] for mean in means])


def test_colours_are_those_of_the_crops():
    image = np.full((20, 40, 3), 255, np.uint8)
    image[5:15, 2:12] = (255, 0, 0)
    image[5:15, 22:32] = (0, 0, 255)
    found = [Detection("car", 0.9, box) for box in ((2, 5, 12, 15), (22.4, 5, 31.6, 15), (33, 0, 33.2, 20))]
    clip = PaletteClip()
    colours = ClipColours("unused")
    colours._model = clip
    assert colours.name(Image.fromarray(image), found * 7, "car") == ["red", "blue", "white"] * 7
    assert clip.texts[:3] == ["a photo of a red car", "a photo of a red-colored car", "a photo of a red object"]
    assert len(clip.texts) == 30


def test_what_is_not_the_object_is_grey():
    image = np.full((10, 10, 3), 255, np.uint8)
    mask = np.zeros((10, 10), bool)
    mask[2:6, 3:5] = True
    cut = np.asarray(cut_out(Image.fromarray(image), Detection("car", 0.9, (3, 2, 7, 6), mask)))
    assert cut.shape == (4, 4, 3)
    assert (cut[:, :2] == 255).all()
    assert (cut[:, 2:] == 0x99).all()


def test_a_clip_of_transformers_names_colours_for_geneval(checkpoints, scenes):
    options = GenEvalOptions(
        detector=str(checkpoints["mask2former"]), colour_model=str(checkpoints["clip"]), threshold=0.001
    )
    reward = GenEval(options)
    reward.setup("cpu")
    asked = {"tag": "colors", "include": [{"class": shape, "count": 1, "color": "red"} for shape in world.SHAPES]}
    (told,) = reward(batch_of(scenes[1][:1], [asked])).details
    seen = {entry["found"].split(" ", 1)[-1] for entry in told["conditions"] if entry["condition"] == "colour"}
    assert seen <= {*COLOUR_WORDS, "none"}
    assert seen != {"none"}
