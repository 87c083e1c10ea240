import math

import pytest
from support.errors import raises

from tdmr1_rewards.scoring.combine import applicability, normalised_sum, weighted_sum

pytestmark = pytest.mark.unit


def test_weighted_sum_equals_a_hand_calculation():
    per_reward = {"a": [1.0, 2.0, 0.0], "b": [10.0, -4.0, 0.5]}
    assert weighted_sum(per_reward, {"b": 0.5, "a": 2.0}) == [7.0, 2.0, 0.25]


def test_one_none_makes_the_total_none_and_zero_does_not():
    per_reward = {"a": [0.0, None, 1.0, None], "b": [0.0, 1.0, None, None]}
    assert weighted_sum(per_reward, {"a": 1.0, "b": 1.0}) == [0.0, None, None, None]
    # Also with weight 0: otherwise an image that was not judged would have a total.
    assert weighted_sum({"a": [None], "b": [1.0]}, {"a": 0.0, "b": 1.0}) == [None]


def test_weighted_sum_rejects_unequal_lengths():
    with pytest.raises(ValueError):
        weighted_sum({"a": [1.0], "b": [1.0, 2.0]}, {"a": 1.0, "b": 1.0})


def test_normalised_sum_equals_a_hand_calculation():
    # Group 0: a = 1, 3 (mean 2, std 1), b = 0, 10 (mean 5, std 5). Group 7: a = 2, 2 (all equal), b = 4, 8.
    per_reward = {"a": [1.0, 2.0, 3.0, 2.0], "b": [0.0, 4.0, 10.0, 8.0]}
    total = normalised_sum(per_reward, {"a": 1.0, "b": 3.0}, [0, 7, 0, 7], eps=0.0)[::2]
    assert total == [-4.0, 4.0]
    total = normalised_sum(per_reward, {"a": 1.0, "b": 3.0}, [0, 7, 0, 7], eps=1.0)
    assert total == pytest.approx([-1 / 2 - 3 * 5 / 6, -3 * 2 / 3, 1 / 2 + 3 * 5 / 6, 3 * 2 / 3], abs=1e-12)


def test_each_reward_is_normalized_over_its_own_scores_that_are_not_none():
    # b's None leaves b's mean 3 and std 1, but a is still normalized over all three: mean 2, std √(2/3).
    total = normalised_sum({"a": [1.0, 2.0, 3.0], "b": [2.0, None, 4.0]}, {"a": 1.0, "b": 1.0}, [0, 0, 0], eps=0.0)
    assert total[1] is None
    assert total[0] == pytest.approx(-1 / math.sqrt(2 / 3) - 1, abs=1e-12)
    assert total[2] == pytest.approx(1 / math.sqrt(2 / 3) + 1, abs=1e-12)


def test_a_total_that_is_not_finite_is_an_error():
    for scores, weight in (([1e300], 1e10), ([1.0], math.nan), ([-1e308], -10.0)):
        with raises("reward-combined", image=0, rewards=["a"], terms=f"{weight:g} × {scores[0]:g} (a)"):
            weighted_sum({"a": scores}, {"a": weight})
    with raises("reward-combined", image=1, terms="1 × 1e+308 (a) + 1 × 1e+308 (b)"):
        weighted_sum({"a": [0.0, 1e308], "b": [0.0, 1e308]}, {"a": 1.0, "b": 1.0})
    with raises("reward-combined", image=7, rewards=["b"]):
        applies = {"a": [True, False], "b": [True, True]}
        weighted_sum({"a": [0.0, 1.0], "b": [0.0, 1e308]}, {"a": 1.0, "b": 10.0}, applies, image_ids=[6, 7])


def test_scores_whose_squares_overflow_are_normalized():
    # Mean 1.5e200, std 0.5e200.
    assert normalised_sum({"a": [1e200, 2e200]}, {"a": 1.0}, [0, 0]) == pytest.approx([-1, 1])


def test_equal_scores_and_single_scores_give_exactly_zero():
    assert normalised_sum({"a": [0.1] * 3}, {"a": 1.0}, [0, 0, 0]) == [0.0, 0.0, 0.0]
    assert normalised_sum({"a": [5.0, None]}, {"a": 1.0}, [0, 0]) == [0.0, None]


def test_scale_and_offset_of_a_reward_do_not_matter():
    scores = [0.0, 0.5, 0.2, 0.9]
    plain = normalised_sum({"a": scores}, {"a": 1.0}, [0] * 4, eps=0.0)
    moved = normalised_sum({"a": [100 * score - 7 for score in scores]}, {"a": 1.0}, [0] * 4, eps=0.0)
    assert moved == pytest.approx(plain, abs=1e-9)


def test_the_metadata_names_the_rewards_that_apply():
    metadata = [{}, {"rewards": ["a"]}, {"rewards": ("b", "unknown")}, {"rewards": []}, {"rewards": None}]
    assert applicability(metadata, ["a", "b"]) == {
        "a": [True, True, False, False, True],
        "b": [True, False, True, False, True],
    }


@pytest.mark.parametrize("wrong", ["a", {"a": 1}, [1], 3])
def test_metadata_that_is_not_a_list_of_names_is_rejected(wrong):
    with raises("reward-metadata", key="rewards", found=wrong):
        applicability([{"rewards": wrong}], ["a"])


def test_the_total_includes_only_rewards_that_apply():
    # Image by image: both, only a, only b, none, and an applying reward that could not judge.
    per_reward = {"a": [1.0, 2.0, None, None, None], "b": [10.0, None, 20.0, None, 30.0]}
    applies = {"a": [True, True, False, False, True], "b": [True, False, True, False, True]}
    weights = {"a": 2.0, "b": 0.5}
    assert weighted_sum(per_reward, weights, applies) == [7.0, 4.0, 10.0, None, None]


def test_a_score_of_a_reward_that_does_not_apply_is_ignored():
    # Group 0: a applies to images 0 and 2 (1 and 3: mean 2, std 1), b to all (0, 3, 6: mean 3, std √6).
    # Group 1: only b applies (5 and None), so its one judged image has a zero and the other nothing.
    per_reward = {"a": [1.0, 99.0, 3.0, 7.0, 7.0], "b": [0.0, 3.0, 6.0, 5.0, None]}
    applies = {"a": [True, False, True, False, False], "b": [True] * 5}
    total = normalised_sum(per_reward, {"a": 1.0, "b": 10.0}, [0, 0, 0, 1, 1], eps=0.0, applies=applies)
    step = 10 * 3 / math.sqrt(6)
    assert total[:3] == pytest.approx([-1 - step, 0.0, 1 + step], abs=1e-12)
    assert total[3:] == [0.0, None]
