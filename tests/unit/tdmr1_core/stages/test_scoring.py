"""Images without a score: why, in the metrics, and what the engine makes of them."""

import warnings

import pytest
import torch
from support.errors import raises, warns
from support.product import make_engine

from tdmr1_core.errors import RunWarning
from tdmr1_core.records import Groups, Prompt, Scores
from tdmr1_core.stages.scoring import Unscored, describe_unscored, unscored_images
from tdmr1_rewards import RewardResult

pytestmark = pytest.mark.unit

BATCH = {"batch": {"groups": 2, "group_size": 5}, "timesteps": {"per_iteration": 1}}


def test_the_reason_of_each_image_without_a_score():
    prompts = (Prompt("a", {}), Prompt("b", {"rewards": ["two"]}), Prompt("c", {"rewards": ["other"]}))
    scores = Scores(
        total=torch.zeros(6),
        valid=torch.tensor([False, True, False, False, False, False]),
        per_reward={"one": [None, 1.0, None, None, None, None], "two": [1.0, 1.0, None, None, None, None]},
        details=[{"one": {"reason": "it is\ndark"}}, {}, {"two": {"failed": "no server"}}, {}, {}, {}],
    )
    assert unscored_images(scores, Groups(0, prompts, 2)) == [
        Unscored("one", "it is dark", "a"),
        Unscored("two", "no server", "b"),
        Unscored("two", "it returned None without a reason", "b"),
        Unscored("", "no reward applies to the prompt", "c"),
        Unscored("", "no reward applies to the prompt", "c"),
    ]


def test_the_most_frequent_reasons_are_described():
    unscored = [Unscored("one", "dark", "a"), Unscored("one", "dark", "b"), Unscored("", "none applies", "c")]
    expected = "reward 'one': dark (2 images, such as for 'a'); none applies (1 image, such as for 'c')"
    assert describe_unscored(unscored) == expected


def scoring(scores):
    """A reward that returns these scores, with a reason for each None and the metric `size` of every image."""

    def reward(batch):
        chosen = [scores[image] for image in batch.image_ids]
        details = [{"metrics": {"size": 2.0}} | ({"reason": "dark"} if score is None else {}) for score in chosen]
        return RewardResult(chosen, details)

    return reward


def scored(engine):
    return engine.score(engine.rollout(engine.next_groups()))


def test_the_run_stops_if_no_image_of_the_first_iteration_has_a_score():
    engine = make_engine(BATCH, reward=scoring([None] * 10))
    with raises("nothing-scored", images=10, reasons=["dark"]):
        scored(engine)
    engine.close()


def test_a_later_iteration_may_have_no_score():
    engine = make_engine(BATCH, reward=scoring([None] * 10))
    engine.iteration_index = 1
    with warns("images-unscored", images=10, unscored=10, iteration=2):
        scored(engine)
    engine.close()


@pytest.mark.parametrize(("without", "reported"), [(0, False), (1, True), (9, True)])
def test_a_tenth_without_a_score_is_reported_once(without, reported):
    engine = make_engine(BATCH, reward=scoring([None] * without + [1.0] * (10 - without)))
    for time in range(2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            scored(engine)
        found = [each.message for each in caught if isinstance(each.message, RunWarning)]
        assert [each.code for each in found] == (["images-unscored"] if reported and time == 0 else [])
    engine.close()


def test_metrics_in_details_reach_the_metrics_of_the_iteration():
    engine = make_engine(BATCH, reward=scoring([float(i) for i in range(10)]))
    assert engine.iteration().metrics["reward/probe/size"] == 2.0
    engine.close()
