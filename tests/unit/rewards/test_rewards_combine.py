import math

import pytest

from tdmr1_rewards.combine import normalised_sum, weighted_sum

pytestmark = pytest.mark.unit


def test_weighted_sum_by_hand():
    per_reward = {"a": [1.0, 2.0, 0.0], "b": [10.0, -4.0, 0.5]}
    assert weighted_sum(per_reward, {"b": 0.5, "a": 2.0}) == [7.0, 2.0, 0.25]


def test_one_none_makes_the_total_none_and_zero_does_not():
    per_reward = {"a": [0.0, None, 1.0, None], "b": [0.0, 1.0, None, None]}
    assert weighted_sum(per_reward, {"a": 1.0, "b": 1.0}) == [0.0, None, None, None]
    # Even at weight 0: the total would otherwise rest on an image that was not judged.
    assert weighted_sum({"a": [None], "b": [1.0]}, {"a": 0.0, "b": 1.0}) == [None]


def test_weighted_sum_refuses_unequal_lengths():
    with pytest.raises(ValueError):
        weighted_sum({"a": [1.0], "b": [1.0, 2.0]}, {"a": 1.0, "b": 1.0})


def test_normalised_sum_by_hand():
    # Group 0: a = 1, 3 (mean 2, std 1), b = 0, 10 (mean 5, std 5). Group 7: a = 2, 2 (all equal), b = 4, 8.
    per_reward = {"a": [1.0, 2.0, 3.0, 2.0], "b": [0.0, 4.0, 10.0, 8.0]}
    total = normalised_sum(per_reward, {"a": 1.0, "b": 3.0}, [0, 7, 0, 7], eps=0.0)[::2]
    assert total == [-4.0, 4.0]
    total = normalised_sum(per_reward, {"a": 1.0, "b": 3.0}, [0, 7, 0, 7], eps=1.0)
    assert total == pytest.approx([-1 / 2 - 3 * 5 / 6, -3 * 2 / 3, 1 / 2 + 3 * 5 / 6, 3 * 2 / 3], abs=1e-12)


def test_each_reward_is_normalised_over_its_own_valid_scores():
    # b's None leaves b's mean 3 and std 1, but a is still normalised over all three: mean 2, std √(2/3).
    total = normalised_sum({"a": [1.0, 2.0, 3.0], "b": [2.0, None, 4.0]}, {"a": 1.0, "b": 1.0}, [0, 0, 0], eps=0.0)
    assert total[1] is None
    assert total[0] == pytest.approx(-1 / math.sqrt(2 / 3) - 1, abs=1e-12)
    assert total[2] == pytest.approx(1 / math.sqrt(2 / 3) + 1, abs=1e-12)


def test_equal_scores_and_single_scores_give_exactly_zero():
    assert normalised_sum({"a": [0.1] * 3}, {"a": 1.0}, [0, 0, 0]) == [0.0, 0.0, 0.0]
    assert normalised_sum({"a": [5.0, None]}, {"a": 1.0}, [0, 0]) == [0.0, None]


def test_scale_and_offset_of_a_reward_do_not_matter():
    scores = [0.0, 0.5, 0.2, 0.9]
    plain = normalised_sum({"a": scores}, {"a": 1.0}, [0] * 4, eps=0.0)
    moved = normalised_sum({"a": [100 * score - 7 for score in scores]}, {"a": 1.0}, [0] * 4, eps=0.0)
    assert moved == pytest.approx(plain, abs=1e-9)
