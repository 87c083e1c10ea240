"""Tests of a plugin: the contract, with check_reward, and two scores computed by hand."""

import numpy as np
from tdmr1_red_share import RedShare

from tdmr1_rewards import RewardBatch, RewardContext
from tdmr1_rewards.testing import check_reward


def test_it_is_suitable_for_training() -> None:
    """No check fails, and good examples have higher scores."""
    report = check_reward("red_share")
    assert report.fit
    assert "good and bad" in [check.name for check in report.of("passed")]


def test_a_blank_image_gets_a_high_score() -> None:
    """A blank image of the right color is as red as a disc."""
    warned = {check.name for check in check_reward("red_share").of("warned")}
    assert "blank" in warned


def test_scores_equal_a_hand_calculation() -> None:
    """A third of gray is red; dark red is all red."""
    images = np.zeros((2, 4, 4, 3), np.uint8)
    images[0] = 200
    images[1, ..., 0] = 50
    batch = RewardBatch(images, ["", ""], [{}, {}], [0, 0], [0, 1], RewardContext(None, 0, 0))
    assert RedShare()(batch).scores == [1 / 3, 1.0]
