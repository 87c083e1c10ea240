"""The preference model: its features, its training, and the evidence that it reports."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tdmr1_core.tiny import world
from tdmr1_rewards.feedback.features import pixel_features
from tdmr1_rewards.feedback.learning import PreferenceLearner
from tdmr1_rewards.feedback.preference import Evidence, PreferenceModel
from tdmr1_rewards.feedback.records import NewItem
from tdmr1_rewards.feedback.store import FeedbackStore

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def scenes():
    """300 images of the tiny world, and whether each contains a red object."""
    arrays, _, drawn = world.make_dataset(300, 3, world.CaptionNoise())[:3]
    red = [any(thing.colour == "red" for thing in scene.objects) for scene in drawn]
    return [Image.fromarray(array) for array in arrays], np.array(red, dtype=int)


def named(count):
    return np.array([str(index) for index in range(count)])


def test_features_of_plain_images_computed_by_hand():
    red, white = (Image.new("RGB", (10, 20), colour) for colour in ((255, 0, 0), (255, 255, 255)))
    features = pixel_features([red, white])
    assert features.shape == (2, 181)
    histogram = features[:, :64]
    assert histogram[0].argmax() == 3 * 16  # the brightest of four reds, the darkest greens and blues
    assert histogram[1].argmax() == 63
    assert np.allclose(histogram.max(axis=1), 1)
    assert np.allclose(features[0, 64:172].reshape(36, 3), (1, 0, 0))
    assert np.allclose(features[:, 172:], 0)  # no edge anywhere


def test_features_contain_the_direction_of_edges():
    upright = Image.fromarray(np.repeat(np.array([[0, 255]], dtype=np.uint8), 2, axis=0)).convert("RGB")
    across, down = pixel_features([upright, upright.rotate(90)])[:, 172:180]
    assert across.argmax() == 0  # brightness changes from left to right
    assert down.argmax() == 4  # and after a quarter turn from top to bottom
    assert across.max() > 0.99


def test_features_do_not_depend_on_the_other_images(scenes):
    images, _ = scenes
    together = pixel_features(images[:5])
    assert np.array_equal(together[3], pixel_features(images[3:4])[0])


def test_a_model_of_red_objects_predicts_new_images(scenes):
    images, red = scenes
    features = pixel_features(images)
    model = PreferenceModel(features[:200], red[:200], named(200), 40)
    assert model.evidence.sufficient
    assert model.evidence.answers == 200
    accuracy = np.mean((np.array(model.predict(features[200:])) > 0.5) == red[200:])
    assert accuracy > 0.9
    assert abs(accuracy - model.evidence.accuracy) < 0.1  # the cross-validated accuracy is realistic


def test_random_answers_give_insufficient_evidence(scenes):
    images, red = scenes
    features = pixel_features(images[:200])
    sufficient = [
        PreferenceModel(
            features, np.random.default_rng(seed).permutation(red[:200]), named(200), 40
        ).evidence.sufficient
        for seed in range(5)
    ]
    assert not any(sufficient)


def test_repeated_answers_to_the_same_image_are_not_evidence():
    """Twenty noise images with ten answers each: memorized images must not count as predicted."""
    rng = np.random.default_rng(0)
    noise, taste = rng.normal(size=(20, 30)), rng.permutation([0, 1] * 10)
    model = PreferenceModel(noise.repeat(10, axis=0), taste.repeat(10), named(20).repeat(10), 40)
    assert not model.evidence.sufficient
    assert model.evidence.accuracy < 0.8


@pytest.mark.parametrize(("likes", "dislikes"), [(0, 0), (100, 0), (9, 91), (15, 15)])
def test_with_too_few_answers_no_model_is_fitted(likes, dislikes):
    liked = np.array([1] * likes + [0] * dislikes)
    features = np.eye(len(liked)) if len(liked) else np.zeros((0, 1))
    evidence = PreferenceModel(features, liked, named(len(liked)), 40).evidence
    assert evidence.accuracy is None
    assert not evidence.sufficient
    assert str(evidence).startswith(f"{likes + dislikes} answers, {likes} likes; too few")


def test_evidence_is_sufficient_only_above_the_more_common_answer():
    assert Evidence(200, 100, 0.60, 0.03).sufficient
    assert not Evidence(200, 150, 0.80, 0.03).sufficient
    assert Evidence(200, 150, 0.80, 0.03).majority == 0.75
    assert "80% ± 3%" in str(Evidence(200, 150, 0.80, 0.03))
    assert "75%" in str(Evidence(200, 150, 0.80, 0.03))


def test_the_model_is_refitted_as_answers_arrive(tmp_path, scenes):
    images, red = scenes
    store = FeedbackStore(tmp_path)
    opened = store.open_round("r", [[NewItem(image, "")] for image in images[:80]], run="r", step=0)
    items = store.items_of(opened.id)
    calls = []

    def extract(images):
        calls.append(len(images))
        return pixel_features(images)

    learner = PreferenceLearner([store], extract, 40)

    def answer(rows):
        for row in rows:
            given = "like" if red[row] else "dislike"
            store.give(key=f"{row}", item_id=items[row].id, round_id=opened.id, person="p", answer=given)

    answer(range(20))
    assert learner.learn().accuracy is None
    assert learner.predict(images[:3]) == [None] * 3
    answer(range(20, 79))
    store.give(key="skip", item_id=items[79].id, round_id=opened.id, person="p", answer="skip")
    evidence = learner.learn()
    assert evidence.answers == 79
    assert evidence.sufficient
    predicted = learner.predict(images[100:200])
    assert np.mean((np.array(predicted) > 0.5) == red[100:200]) > 0.85
    extracted = sum(calls)
    assert extracted == 79 + 100  # once for each judged image, and once for each predicted image
    assert learner.learn() == evidence
    assert sum(calls) == extracted
    (store.folder / "images" / f"{items[0].hash}.png").unlink()
    fresh = PreferenceLearner([store], pixel_features, 40)
    assert fresh.learn().answers == 78  # a deleted image is ignored
    store.close()


def test_answers_to_later_iterations_are_ignored(tmp_path, scenes):
    """A run that resumes from an earlier checkpoint finds answers to iterations that are still to come."""
    run, other = FeedbackStore(tmp_path / "run"), FeedbackStore(tmp_path / "other")
    for store, step in ((run, 0), (run, 1), (run, 2), (run, None), (other, 5)):
        images = [NewItem(scenes[0][20 * (step or 0) + i], f"{step}") for i in range(10)]
        opened = store.open_round(f"{step}", [images], run="r", step=step)
        for item in store.items_of(opened.id):
            store.give(key=f"{step}/{item.id}", item_id=item.id, round_id=opened.id, person="p", answer="like")
    learner = PreferenceLearner([run, other], pixel_features, 40)
    assert [learner.learn(until).answers for until in (0, 1, 2, None)] == [30, 40, 50, 50]
    run.close(), other.close()
