"""Turns rewards into advantages within groups (TDM-R1, arXiv 2603.07700; group preference from DGPO, 2510.08425).

Tensors have shape (N,), N = groups x group_size. Image i belongs to group i // group_size.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

STD_FLOOR = 1e-4
LARGE = 1e100
"""Rewards with larger absolute values are rescaled to at most 1, because their squares would overflow float64."""


def group_advantages(
    rewards: Tensor,
    valid: Tensor,
    group_size: int,
    *,
    std: Literal["global", "group"] = "global",
    clip: float = 5.0,
    binary: bool = False,
) -> Tensor:
    """A_i = (r_i - group mean) / (std + 1e-4), clipped to [-clip, clip] and centered again: each group sums to 0.

    `rewards` (N,) are finite. `valid` bool (N,) marks the images that have a reward. The advantage is 0 for an image
    without a reward, and for every image of a group without signal (all rewards equal, or fewer than two valid ones).
    `std` is the population standard deviation over all valid rewards ("global") or within each group ("group").
    With `binary` the advantage is the centered sign of r_i - group mean, without division or clipping.
    """
    rewards, mask = rewards.view(-1, group_size), valid.view(-1, group_size)  # (groups, group_size)
    unit = _unit(rewards, mask, per_group=binary or std == "group")  # () or (groups, 1)
    mask, rewards = mask & ~_without_signal(rewards, mask)[:, None], rewards / unit
    centered = _center(rewards, mask)
    if binary:
        rounding = 1e-9 * centered.abs().amax(1, keepdim=True) + 1e-14 * rewards.abs().amax(1, keepdim=True)
        return _center(centered.sign() * (centered.abs() > rounding), mask).view(-1)
    deviation = _group_std(centered, mask) if std == "group" else _global_std(rewards, valid.view_as(rewards))
    scaled = (centered / (deviation + STD_FLOOR / unit)).clamp(-clip, clip)
    return _center(scaled, mask).view(-1)


def group_spreads(rewards: Tensor, valid: Tensor, group_size: int) -> Tensor:
    """The population standard deviation (groups,) of the valid rewards of each group; exactly 0 if all are equal.

    It is NaN for a group with fewer than two valid rewards, whose spread is unknown.
    """
    rewards, mask = rewards.view(-1, group_size), valid.view(-1, group_size)
    unit = _unit(rewards, mask, per_group=True)
    spreads = (_group_std(_center(rewards / unit, mask), mask) * unit).view(-1)
    spreads = spreads.masked_fill(_without_signal(rewards, mask), 0)
    return spreads.masked_fill(mask.sum(1) < 2, torch.nan)


def zero_std_ratio(rewards: Tensor, valid: Tensor, group_size: int) -> float:
    """Fraction (0 to 1) of groups without signal: all rewards equal, or fewer than two valid ones."""
    return _without_signal(rewards.view(-1, group_size), valid.view(-1, group_size)).double().mean().item()


def permute_in_groups(values: Tensor, uniform: Tensor, group_size: int) -> Tensor:
    """Shuffle `values` (N,) within each group, as a control. The order is that of the random numbers `uniform` (N,)."""
    order = uniform.view(-1, group_size).argsort(1)  # (groups, group_size)
    return values.view(-1, group_size).gather(1, order).reshape(-1)


def _unit(rewards: Tensor, mask: Tensor, *, per_group: bool) -> Tensor:
    """The divisor that prevents overflow: the largest absolute reward where it exceeds LARGE, otherwise 1.

    The maximum is taken within each group, shape (groups, 1), or over all rewards, shape ().
    """
    sizes = rewards.masked_fill(~mask, 0).abs()
    largest = sizes.amax(1, keepdim=True) if per_group else sizes.max()
    return torch.where(largest > LARGE, largest, 1)


def _without_signal(rewards: Tensor, mask: Tensor) -> Tensor:
    """Bool (groups,): True for a group with fewer than two valid rewards, or with equal ones only."""
    highest = rewards.masked_fill(~mask, -torch.inf).amax(1)
    lowest = rewards.masked_fill(~mask, torch.inf).amin(1)
    return (mask.sum(1) < 2) | (highest <= lowest)


def _center(values: Tensor, mask: Tensor) -> Tensor:
    """Subtract each row's mean over the masked entries. Entries outside the mask become 0. All (groups, group_size)."""
    mean = (values * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp_min(1)
    return (values - mean) * mask


def _group_std(centered: Tensor, mask: Tensor) -> Tensor:
    """Population standard deviation (groups, 1) of centered values, over the masked entries of each row."""
    return (centered.square().sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp_min(1)).sqrt()


def _global_std(rewards: Tensor, mask: Tensor) -> Tensor:
    """Population standard deviation of all valid rewards, shape (); 0 if there are none."""
    chosen = rewards[mask]
    return chosen.std(correction=0) if chosen.numel() else rewards.new_zeros(())
