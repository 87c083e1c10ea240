"""Advantages, compared with values computed by hand."""

from __future__ import annotations

import pytest
import torch
from support.errors import raises
from torch import Tensor

from tdmr1_core.algorithm.advantages import group_advantages, group_spreads, permute_in_groups, zero_std_ratio
from tdmr1_core.records import Advantages

pytestmark = pytest.mark.unit


def numbers(*values: float) -> Tensor:
    """A float64 tensor (N,)."""
    return torch.tensor(values, dtype=torch.float64)


def valid(text: str) -> Tensor:
    """The mask (N,) of a text such as '1101'."""
    return torch.tensor([digit == "1" for digit in text])


def assert_equal(found: Tensor, *expected: float) -> None:
    """Check every advantage."""
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(list(expected), rel=1e-9, abs=1e-12)


def test_global_deviation() -> None:
    # Both groups have mean 0; (1 + 1 + 49 + 49) / 4 = 25.
    found = group_advantages(numbers(-1, 1, -7, 7), valid("1111"), 2)
    assert_equal(found, -1 / 5.0001, 1 / 5.0001, -7 / 5.0001, 7 / 5.0001)


def test_global_deviation_includes_differences_between_groups() -> None:
    # Overall mean 5, deviations -5, -3, 3, 5: (25 + 9 + 9 + 25) / 4 = 17.
    found = group_advantages(numbers(0, 2, 8, 10), valid("1111"), 2)
    assert_equal(found, *[sign / (17**0.5 + 1e-4) for sign in (-1, 1, -1, 1)])


def test_group_deviation() -> None:
    # Deviations 1 and 7.
    found = group_advantages(numbers(4, 6, -7, 7), valid("1111"), 2, std="group")
    assert_equal(found, -1 / 1.0001, 1 / 1.0001, -7 / 7.0001, 7 / 7.0001)


def test_std_floor_limits_advantages_of_tiny_deviations() -> None:
    # 1e-4 / (1e-4 + 1e-4).
    assert_equal(group_advantages(numbers(1e-4, -1e-4), valid("11"), 2), 0.5, -0.5)


@pytest.mark.parametrize("std", ["global", "group"])
def test_rewards_whose_squares_overflow(std: str) -> None:
    # In units of 1e200: mean 0.75, deviations 0.25 1.25 -0.75 -0.75, squares 0.0625 1.5625 0.5625 0.5625, / 4 = 0.6875.
    found = group_advantages(numbers(1e200, 2e200, 0, 0), valid("1111"), 4, std=std)  # type: ignore[arg-type]
    deviation = 0.6875**0.5
    assert_equal(found, 0.25 / deviation, 1.25 / deviation, -0.75 / deviation, -0.75 / deviation)


def test_large_rewards_of_one_group_do_not_change_other_groups() -> None:
    rewards = numbers(-1.7e308, 1.7e308, 4, 6)
    by_group = group_advantages(rewards, valid("1111"), 2, std="group")
    assert_equal(by_group, -1, 1, -1 / 1.0001, 1 / 1.0001)
    # Global: the squares are 1 1 0 0 in units of the largest reward, / 4 = 0.5 ** 2; the second group rounds to 0.
    assert_equal(group_advantages(rewards, valid("1111"), 2), -(2**0.5), 2**0.5, 0, 0)
    assert_equal(group_advantages(rewards, valid("1111"), 2, binary=True), -1, 1, -1, 1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_advantages_must_be_finite(bad: float) -> None:
    with raises("reward-combined", not_finite=2, images=3):
        Advantages(numbers(bad, bad, 1), 0.0)


def test_clip_and_recenter() -> None:
    # Mean 1, deviation 2: four times -1/2.0001 and 4/2.0001 -> 1; mean (1 - 4 * 0.4999750012) / 5 = -0.199980001.
    found = group_advantages(numbers(0, 0, 0, 0, 5), valid("11111"), 5, clip=1)
    assert_equal(found, *[-0.29999500025] * 4, 1.199980001)
    assert found.sum().item() == pytest.approx(0, abs=1e-15)


def test_clip_is_symmetric() -> None:
    up = group_advantages(numbers(0, 0, 0, 0, 5), valid("11111"), 5, clip=1)
    down = group_advantages(numbers(0, 0, 0, 0, -5), valid("11111"), 5, clip=1)
    torch.testing.assert_close(down, -up)


def test_images_without_reward_do_not_enter_mean_and_deviation() -> None:
    rewards, mask = numbers(2, 4, 100, 0, 2, 4), valid("110111")
    # Valid: 2 4 | 0 2 4: mean 2.4, squares 0.16 2.56 5.76 0.16 2.56 = 11.2, / 5 = 2.24.
    deviation = 2.24**0.5 + 1e-4
    found = group_advantages(rewards, mask, 3)
    assert_equal(found, -1 / deviation, 1 / deviation, 0, -2 / deviation, 0, 2 / deviation)
    by_group = group_advantages(rewards, mask, 3, std="group")
    # Deviations 1 (of two images) and sqrt(8/3).
    second = (8 / 3) ** 0.5 + 1e-4
    assert_equal(by_group, -1 / 1.0001, 1 / 1.0001, 0, -2 / second, 0, 2 / second)


def test_clip_recenters_over_valid_images_only() -> None:
    found = group_advantages(numbers(0, 0, 0, 0, 5, -50), valid("111110"), 6, clip=1)
    assert_equal(found, *[-0.29999500025] * 4, 1.199980001, 0)


@pytest.mark.parametrize("std", ["global", "group"])
@pytest.mark.parametrize("mask", ["100111", "000111"])
def test_groups_with_fewer_than_two_valid_rewards_have_no_signal(std: str, mask: str) -> None:
    found = group_advantages(numbers(7, 8, 9, 0, 1, 2), valid(mask), 3, std=std)  # type: ignore[arg-type]
    assert found[:3].tolist() == [0, 0, 0]
    assert found[3].item() < 0 < found[5].item()
    assert zero_std_ratio(numbers(7, 8, 9, 0, 1, 2), valid(mask), 3) == 0.5


def test_no_valid_reward() -> None:
    found = group_advantages(numbers(1, 2, 3, 4), valid("0000"), 2)
    assert found.tolist() == [0, 0, 0, 0]
    assert not Advantages(found, 1.0).has_signal
    assert zero_std_ratio(numbers(1, 2, 3, 4), valid("0000"), 2) == 1


@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e-9, 0.7, 123456.789, 0.0])
@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("std", ["global", "group"])
@pytest.mark.parametrize("size", [3, 9, 11, 24])
def test_equal_rewards_are_exactly_zero(value: float, binary: bool, std: str, size: int) -> None:
    """Even where the rounded sum of the rewards differs from size times the reward."""
    rewards, mask = numbers(*[value] * size), torch.ones(size, dtype=torch.bool)
    found = group_advantages(rewards, mask, size, std=std, binary=binary)  # type: ignore[arg-type]
    assert found.tolist() == [0] * size
    assert zero_std_ratio(rewards, mask, size) == 1


def test_equal_valid_rewards_and_one_invalid() -> None:
    rewards, mask = numbers(0.1, 0.1, 0.1, 9), valid("1110")
    assert group_advantages(rewards, mask, 4, binary=True).tolist() == [0] * 4
    assert zero_std_ratio(rewards, mask, 4) == 1


def test_binary_centers_the_signs() -> None:
    # Mean 4 and signs -1 -1 -1 1, whose mean is -0.5; then mean 5 and signs 0 -1 1; then -1 1 and one invalid.
    assert_equal(group_advantages(numbers(1, 2, 3, 10), valid("1111"), 4, binary=True), -0.5, -0.5, -0.5, 1.5)
    assert_equal(group_advantages(numbers(5, 2, 8), valid("111"), 3, binary=True), 0, -1, 1)
    assert_equal(group_advantages(numbers(5, 2, 8), valid("101"), 3, binary=True), -1, 0, 1)


def test_binary_is_zero_at_the_mean_despite_rounding() -> None:
    assert_equal(group_advantages(numbers(0.1, 0.2, 0.3), valid("111"), 3, binary=True), -1, 0, 1)


def test_zero_std_ratio_counts_groups_without_signal() -> None:
    rewards = numbers(0.1, 0.1, 0, 1, 5, 5, 2, 3)
    assert zero_std_ratio(rewards, valid("11111111"), 2) == 0.5
    assert zero_std_ratio(rewards, valid("11111110"), 2) == 0.75


def test_advantages_sum_to_zero_for_all_settings() -> None:
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randn(40, generator=generator, dtype=torch.float64) ** 3
    mask = torch.rand(40, generator=generator) < 0.8
    for std in ("global", "group"):
        for binary in (False, True):
            found = group_advantages(rewards, mask, 8, std=std, binary=binary, clip=0.7)
            assert found.view(5, 8).sum(1).abs().max().item() < 1e-12
            assert bool((found[~mask] == 0).all())
            assert Advantages(found, 0.0).has_signal


def test_permute_by_hand() -> None:
    # The order of the random numbers: group 1 smallest first is 2, 0, 1; group 2 is 1, 2, 0.
    found = permute_in_groups(numbers(10, 20, 30, 40, 50, 60), numbers(0.5, 0.9, 0.1, 0.8, 0.2, 0.3), 3)
    assert found.tolist() == [30, 10, 20, 50, 60, 40]


def test_permute_shuffles_within_each_group() -> None:
    values = torch.arange(60, dtype=torch.float64)
    uniform = torch.rand(60, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    found = permute_in_groups(values, uniform, 12)
    assert not torch.equal(found, values)
    for group in range(5):
        part = slice(12 * group, 12 * group + 12)
        assert sorted(found[part].tolist()) == values[part].tolist()


def test_spreads_of_groups() -> None:
    # Deviations 1 and 7; equal rewards whose mean is rounded; one valid reward; 0 and 3 of three, the last not valid.
    found = group_spreads(numbers(4, 6, 0, -7, 7, 0, 0.1, 0.1, 0.1, 5, 1, 1, 0, 3, 9), valid("110110111100110"), 3)
    assert found.tolist() == pytest.approx([1, 7, 0, torch.nan, 1.5], nan_ok=True)
    assert found[2] == 0


def test_spreads_whose_squares_overflow() -> None:
    assert group_spreads(numbers(1e200, -1e200, 1, 3), valid("1111"), 2).tolist() == pytest.approx([1e200, 1])
