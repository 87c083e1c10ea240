"""What a plugin's author tests: the contract by tdmr1's own kit, and a case computed by hand."""

import numpy as np
from tdmr1_red_share import RedShare

from tdmr1_rewards import RewardBatch, RewardContext
from tdmr1_rewards.testing import check_reward


def test_it_is_fit_to_train_with() -> None:
    """Nothing that the kit looks at fails, and the good examples are preferred."""
    report = check_reward("red_share")
    assert report.fit
    assert "good and bad" in [check.name for check in report.of("passed")]


def test_what_cheats_it_is_known() -> None:
    """A blank picture of the right colour is as red as a disc."""
    warned = {check.name for check in check_reward("red_share").of("warned")}
    assert "blank" in warned


def test_a_third_of_grey_is_red() -> None:
    """Two pictures by hand: grey, and dark red."""
    images = np.zeros((2, 4, 4, 3), np.uint8)
    images[0] = 200
    images[1, ..., 0] = 50
    batch = RewardBatch(images, ["", ""], [{}, {}], [0, 0], [0, 1], RewardContext(None, 0, 0))
    assert RedShare()(batch).scores == [1 / 3, 1.0]
