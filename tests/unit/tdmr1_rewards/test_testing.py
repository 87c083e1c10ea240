import itertools

import numpy as np
import pytest
from PIL import Image
from support.errors import raises

from tdmr1_rewards.api import RewardBatch, RewardExample, RewardResult, RewardSpec
from tdmr1_rewards.contract.checks import sample_images
from tdmr1_rewards.errors import Tdmr1Error
from tdmr1_rewards.testing import RewardUnfit, check_reward, examine

pytestmark = pytest.mark.unit


def spec(**changes):
    known = {"name": "mine", "summary": "", "factory": "a:b", "default_prompts": "", "image_format": "array"}
    return RewardSpec(**{**known, **changes})


def disc(x):
    """A white disc at (x, 16) on black, 32 pixels wide."""
    rows, columns = np.mgrid[:32, :32]
    return np.where(((columns - x) ** 2 + (rows - 16) ** 2 < 49)[..., None], 255, 0).repeat(3, -1).astype(np.uint8)


CENTRED = [
    RewardExample(image=disc(16), prompt="p", good=True),
    RewardExample(image=Image.fromarray(disc(15)), prompt="p", good=True, metadata={"x": 15}),
    RewardExample(image=disc(4), prompt="p", good=False),
    RewardExample(image=disc(28), prompt="q", good=False),
]


def stands_out(batch: RewardBatch) -> RewardResult:
    """The mean brightness of the center minus that of the image."""
    light = batch.images.astype(float).mean(-1) / 255
    middle = light[:, 11:21, 11:21].mean((1, 2))
    return RewardResult([float(score) for score in middle - light.mean((1, 2))])


def outcomes(report):
    return {check.name: check.outcome for check in report.checks}


def sentence(report, name):
    (found,) = [check.sentence for check in report.checks if check.name == name]
    return found


def test_a_good_reward_passes_every_check():
    report = check_reward(stands_out, spec=spec(), examples=CENTRED)
    assert outcomes(report) == {
        "contract": "passed",
        "determinism": "passed",
        "order": "passed",
        "batch size": "passed",
        "missing metadata": "passed",
        "variety": "passed",
        "good and bad": "passed",
        "blank": "passed",
        "noise": "passed",
        "tiling": "passed",
        "negative": "passed",
        "JPEG artefacts": "passed",
    }
    assert report.fit
    assert report.verdict == "mine is suitable for training"
    assert sentence(report, "good and bad").startswith("4 of 4 pairs")
    assert report.document()["fit"] is True
    assert str(report).splitlines()[-1] == report.verdict


def test_a_reward_that_cannot_detect_a_negative_gets_a_warning():
    def contrast(batch):
        return RewardResult([abs(score) for score in stands_out(batch).scores])

    report = check_reward(contrast, spec=spec(), examples=CENTRED)
    assert outcomes(report)["negative"] == "warned"
    assert "0.848" in sentence(report, "negative")
    assert report.fit
    assert report.verdict.endswith("(with 1 warning)")


def test_a_reward_that_prefers_blank_images_fails():
    def smooth(batch):
        return RewardResult([-float(np.abs(np.diff(image.astype(float), axis=0)).mean()) for image in batch.images])

    with pytest.raises(RewardUnfit) as caught:
        check_reward(smooth, spec=spec(), examples=CENTRED)
    assert isinstance(caught.value, AssertionError)
    assert outcomes(caught.value.report)["blank"] == "failed"
    assert outcomes(caught.value.report)["noise"] == "passed"


def test_a_reward_that_prefers_the_bad_examples_fails():
    def inverse(batch):
        return RewardResult([-score for score in stands_out(batch).scores])

    report = examine(inverse, spec=spec(), examples=CENTRED)
    assert outcomes(report)["good and bad"] == "failed"
    assert sentence(report, "good and bad").startswith("0 of 4 pairs")


def test_scores_that_depend_on_the_rest_of_the_batch_fail():
    def ranks(batch):
        scores = stands_out(batch).scores
        return RewardResult([float(sorted(scores).index(score)) for score in scores])

    def positions(batch):
        return RewardResult([float(i) for i in range(len(batch))])

    assert outcomes(examine(ranks, spec=spec(), examples=CENTRED))["batch size"] == "failed"
    report = examine(positions, spec=spec(), examples=CENTRED)
    assert outcomes(report)["order"] == "failed"
    assert sentence(report, "order").startswith("scores change by up to 3 ")


def test_a_groupwise_reward_may_use_its_group():
    def relative(batch):
        scores = np.array(stands_out(batch).scores)
        groups = np.array(batch.group_ids)
        return RewardResult([float(s - scores[groups == g].mean()) for s, g in zip(scores, groups, strict=True)])

    found = outcomes(examine(relative, spec=spec(groupwise=True), examples=CENTRED))
    assert (found["order"], found["batch size"]) == ("passed", "passed")
    assert outcomes(examine(relative, spec=spec(), examples=CENTRED))["batch size"] == "failed"


def test_a_groupwise_reward_gets_a_corrupted_image_in_place_of_the_original_in_its_group():
    sizes = []

    def relative(batch):
        groups = list(batch.group_ids)
        sizes.extend(groups.count(group) for group in set(groups))
        return stands_out(batch)

    found = outcomes(examine(relative, spec=spec(groupwise=True), examples=CENTRED[:3]))
    assert (found["blank"], found["noise"]) == ("passed", "passed")
    assert set(sizes) == {3}


def test_random_scores_are_a_warning_if_small_and_a_failure_if_large():
    calls = itertools.count()

    def wavering(size):
        def reward(batch):
            return RewardResult([score + size * (next(calls) % 2) for score in stands_out(batch).scores])

        return reward

    found = outcomes(examine(wavering(0.05), spec=spec(batch_size=3), examples=CENTRED[:3]))
    assert found["determinism"] == "warned"
    assert found["order"] == found["batch size"] == "not applicable"
    assert outcomes(examine(wavering(5.0), spec=spec(batch_size=3), examples=CENTRED[:3]))["determinism"] == "failed"


@pytest.mark.parametrize(
    ("reward", "named"),
    [
        (lambda batch: RewardResult([0.0]), "8"),
        (lambda batch: RewardResult([float("nan")] * 8), "nan"),
        (lambda batch: [0.0] * 8, "list"),
        (lambda batch: RewardResult([0.0] * 8, [1] * 8), "int"),
        (lambda batch: {}["weights"], "KeyError"),
    ],
)
def test_a_broken_contract_skips_the_other_checks(reward, named):
    report = examine(reward, spec=spec())
    assert outcomes(report) == {"contract": "failed"}
    assert named in report.verdict


def test_missing_metadata():
    examples = [RewardExample(image=disc(16), prompt="p", good=True, metadata={"x": 1.0})]

    def breaking(batch):
        return RewardResult([entry["x"] for entry in batch.metadata])

    def abstaining(batch):
        return RewardResult([entry.get("x") for entry in batch.metadata])

    def refusing(batch):
        if not all(batch.metadata):
            raise Tdmr1Error("the metadata have no x")
        return abstaining(batch)

    found = {
        reward.__name__: outcomes(examine(reward, spec=spec(), examples=examples))["missing metadata"]
        for reward in (breaking, abstaining, refusing)
    }
    assert found == {"breaking": "failed", "abstaining": "passed", "refusing": "warned"}


def test_a_reward_that_raises_for_a_blank_image_fails():
    def divides(batch):
        return RewardResult([1.0 / int(image.max() > image.min()) for image in batch.images])

    report = examine(divides, spec=spec(), examples=CENTRED)
    assert "ZeroDivisionError" in sentence(report, "blank")
    assert outcomes(report)["noise"] == "warned"
    assert not report.fit


def test_without_examples_some_checks_are_not_applicable():
    report = examine(stands_out, spec=spec())
    assert report.fit
    assert outcomes(report)["good and bad"] == outcomes(report)["blank"] == "not applicable"
    nothing = examine(lambda batch: RewardResult([None] * len(batch)), spec=spec())
    assert outcomes(nothing)["contract"] == "warned"
    assert outcomes(nothing)["variety"] == "not applicable"
    assert outcomes(examine(lambda batch: RewardResult([1.0] * len(batch)), spec=spec()))["variety"] == "warned"


def test_sample_images_are_deterministic_and_all_different():
    first, second = sample_images(), sample_images()
    assert all((one.image == other.image).all() for one, other in zip(first, second, strict=True))
    assert len({image.image.tobytes() for image in first}) == len(first) == 8


def test_any_convention_and_source_can_be_checked(tmp_path):
    path = tmp_path / "peers.py"
    path.write_text(
        "def bright(images, prompts, metadata, scale=1.0):\n"
        "    return [scale * float(image.mean()) for image in images], {}\n"
    )
    assert check_reward(f"{path}:bright", options={"scale": 2.0}).reward == "bright"
    assert check_reward(lambda pixels, prompts: pixels.mean((1, 2, 3))).fit


def test_a_function_whose_image_format_is_unclear_is_refused():
    with pytest.raises(RewardUnfit, match="the formats give different scores"):
        check_reward(lambda images, prompts: images.mean((1, 2, 3)))
    assert check_reward(lambda images, prompts: images.mean((1, 2, 3)), options={"image_format": "tensor"}).fit


def test_an_example_must_be_an_image():
    with raises("reward-images", prompt="p", dtype="float64", shape=[4, 4]):
        examine(stands_out, spec=spec(), examples=[RewardExample(image=np.zeros((4, 4)), prompt="p", good=True)])


def test_the_built_in_reward_keeps_the_contract():
    assert check_reward("object_count").fit
