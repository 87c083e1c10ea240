"""Which points of a trajectory are trained on, and at which level: draws that depend on the seed alone."""

from __future__ import annotations

import torch
from torch import Tensor

from tdmr1_core.algorithm import seeds
from tdmr1_core.algorithm.flow import draw_tau
from tdmr1_core.config import Sharing
from tdmr1_core.records import Groups, Trajectory


def sharing_ids(groups: Groups, sharing: Sharing) -> list[int]:
    """An id for each image (N,): images with equal ids share a draw."""
    if sharing == "step":
        return [0] * groups.images
    if sharing == "group":
        return [image // groups.group_size for image in groups.image_ids]
    return list(groups.image_ids)


def draw_steps(seed: int, groups: Groups, steps: int, count: int, sharing: Sharing) -> Tensor:
    """`count` different ones of the K steps for each image: int64 (count, N), random order."""
    ids = sharing_ids(groups, sharing)
    drawn = {
        i: torch.randperm(steps, generator=seeds.stream(seed, "step", groups.iteration, i))[:count]
        for i in dict.fromkeys(ids)
    }
    return torch.stack([drawn[i] for i in ids], dim=1)


def draw_boundaries(
    seed: int, groups: Groups, steps: int, counters: tuple[int, ...], sharing: Sharing, weighted: bool
) -> Tensor:
    """The surrogate's boundary k for each image: int64 (N,), drawn with probability ~ (k+1), or always K - 1."""
    if not weighted:
        return torch.full((groups.images,), steps - 1)
    uniform = seeds.uniform(seed, "boundary", (groups.iteration, *counters), sharing_ids(groups, sharing))
    cumulative = torch.arange(1, steps + 1, dtype=torch.float64).cumsum(0)
    return torch.searchsorted(cumulative / cumulative[-1], uniform, right=True)


def draw_levels(
    seed: int, name: str, groups: Groups, counters: tuple[int, ...], sharing: Sharing, lower: Tensor, shift: float
) -> Tensor:
    """Levels tau float64 (N,), uniform in unshifted time between `lower` (N,) and 1 (algorithm of TDM)."""
    uniform = seeds.uniform(seed, name, (groups.iteration, *counters), sharing_ids(groups, sharing))
    return draw_tau(uniform, lower, shift)


def noise_for(
    seed: int, name: str, groups: Groups, counters: tuple[int, ...], rows: Tensor, sharing: Sharing, like: Tensor
) -> Tensor:
    """Standard normal noise for the given images, shaped and placed as the latents `like`."""
    ids = sharing_ids(groups, sharing)
    chosen = [ids[row] for row in rows.tolist()]
    return seeds.noise(seed, name, (groups.iteration, *counters), chosen, like.shape[-3:]).to(like)


def latents_at(trajectory: Trajectory, step_index: Tensor, rows: Tensor, device: torch.device) -> Tensor:
    """The stored latents of the given images at each one's own step, (B, C, H, W), on a device."""
    return trajectory.latents[step_index[rows], rows].to(device)
