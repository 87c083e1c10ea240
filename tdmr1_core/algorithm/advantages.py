"""Rewards of a group to advantages (algorithm of TDM-R1, arXiv 2603.07700; group preference after DGPO).

Images are laid out group by group: N = groups x group_size, and every function takes and gives (N,).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

STD_FLOOR = 1e-4
LARGE = 1e100
"""Above this rewards are brought to 1 before they are summed and squared, which float64 could not hold."""


def group_advantages(
    rewards: Tensor,
    valid: Tensor,
    group_size: int,
    *,
    std: Literal["global", "group"] = "global",
    clip: float = 5.0,
    binary: bool = False,
) -> Tensor:
    """A_i = (r_i - mean of its group) / (std + 1e-4), clipped to +-clip and centred again, so that a group sums to 0.

    `rewards` (N,) are any finite numbers and `valid` (N,) says which of them count; an image without a reward gets 0,
    as does a group whose rewards are all equal or that has fewer than two valid ones. `std` is
    taken over all valid rewards or over each group's; `binary` keeps only the sign.
    """
    rewards, mask = rewards.view(-1, group_size), valid.view(-1, group_size)
    unit = _unit(rewards, mask, each_group=binary or std == "group")
    mask, rewards = mask & ~_silent(rewards, mask)[:, None], rewards / unit
    centred = _centre(rewards, mask)
    if binary:
        rounding = 1e-9 * centred.abs().amax(1, keepdim=True) + 1e-14 * rewards.abs().amax(1, keepdim=True)
        return _centre(centred.sign() * (centred.abs() > rounding), mask).view(-1)
    if std == "group":
        deviation = (centred.square().sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp_min(1)).sqrt()
    else:
        deviation = _global_std(rewards, valid.view_as(rewards))
    scaled = (centred / (deviation + STD_FLOOR / unit)).clamp(-clip, clip)
    return _centre(scaled, mask).view(-1)


def zero_std_ratio(rewards: Tensor, valid: Tensor, group_size: int) -> float:
    """The share of groups that teach nothing: all rewards equal, or fewer than two valid ones."""
    return _silent(rewards.view(-1, group_size), valid.view(-1, group_size)).double().mean().item()


def permute_in_groups(values: Tensor, uniform: Tensor, group_size: int) -> Tensor:
    """The published control: `values` (N,) shuffled inside each group, in the order of the random `uniform` (N,)."""
    order = uniform.view(-1, group_size).argsort(1)
    return values.view(-1, group_size).gather(1, order).reshape(-1)


def _unit(rewards: Tensor, mask: Tensor, *, each_group: bool) -> Tensor:
    """What rewards (groups, G) are measured in: 1, or the largest of a group or of all where that is too large."""
    sizes = rewards.masked_fill(~mask, 0).abs()
    largest = sizes.amax(1, keepdim=True) if each_group else sizes.max()
    return torch.where(largest > LARGE, largest, 1)


def _silent(rewards: Tensor, mask: Tensor) -> Tensor:
    """Which rows (groups,) have fewer than two valid rewards or only equal ones."""
    highest = rewards.masked_fill(~mask, -torch.inf).amax(1)
    lowest = rewards.masked_fill(~mask, torch.inf).amin(1)
    return (mask.sum(1) < 2) | (highest <= lowest)


def _centre(values: Tensor, mask: Tensor) -> Tensor:
    """Values less their row's mean over the mask, and 0 outside it."""
    mean = (values * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp_min(1)
    return (values - mean) * mask


def _global_std(rewards: Tensor, mask: Tensor) -> Tensor:
    """The population deviation of all valid rewards, 0 if there are none."""
    chosen = rewards[mask]
    return chosen.std(correction=0) if chosen.numel() else rewards.new_zeros(())
