"""The random draws of an iteration: prompts, sampling steps, noise levels and noises. All are functions of the seed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from tdmr1_core.algorithm import seeds
from tdmr1_core.algorithm.flow import draw_tau
from tdmr1_core.config import Sharing
from tdmr1_core.records import Groups, Prompt, Trajectory


def next_groups(prompts: Sequence[Prompt], iteration: int, groups: int, group_size: int, seed: int) -> Groups:
    """The groups of an iteration, counted from 0. The prompt set is used up in random order, then shuffled again."""
    chosen, orders = [], dict[int, list[int]]()
    for position in range(iteration * groups, (iteration + 1) * groups):
        epoch, place = divmod(position, len(prompts))
        if epoch not in orders:
            orders[epoch] = torch.randperm(len(prompts), generator=seeds.stream(seed, "prompts", epoch)).tolist()
        chosen.append(prompts[orders[epoch][place]])
    return Groups(iteration, tuple(chosen), group_size)


def upcoming_texts(
    prompts: Sequence[Prompt], iterations: Iterable[int], draw: Callable[[int], Groups]
) -> Iterator[str]:
    """The texts of the prompts that `draw` returns for these iterations, in the order of their first use."""
    left = {prompt.text for prompt in prompts}
    for iteration in iterations:
        for text in dict.fromkeys(prompt.text for prompt in draw(iteration).prompts):
            if text in left:
                left.remove(text)
                yield text
        if not left:
            return


def sharing_ids(groups: Groups, sharing: Sharing) -> list[int]:
    """An id for each image (N,): images with equal ids share a random draw.

    A number shares it among that many consecutive groups, counted over all processes; "group" is the same as 1.
    """
    if sharing == "step":
        return [0] * groups.images
    if sharing == "sample":
        return list(groups.image_ids)
    images = groups.group_size * (1 if sharing == "group" else sharing)
    return [image // images for image in groups.image_ids]


def draw_steps(seed: int, groups: Groups, steps: int, count: int, sharing: Sharing) -> Tensor:
    """For each image, `count` distinct steps of the K = `steps`, in random order: int64 (count, N)."""
    ids = sharing_ids(groups, sharing)
    drawn = {
        i: torch.randperm(steps, generator=seeds.stream(seed, "step", groups.iteration, i))[:count]
        for i in dict.fromkeys(ids)
    }
    return torch.stack([drawn[i] for i in ids], dim=1)


def draw_boundaries(
    seed: int, groups: Groups, steps: int, counters: tuple[int, ...], sharing: Sharing, weighted: bool
) -> Tensor:
    """The boundary k of the surrogate for each image, int64 (N,), K = `steps`.

    With `weighted` it is drawn with probability proportional to k + 1; otherwise it is K - 1.
    """
    if not weighted:
        return torch.full((groups.images,), steps - 1)
    uniform = seeds.uniform(seed, "boundary", (groups.iteration, *counters), sharing_ids(groups, sharing))
    cumulative = torch.arange(1, steps + 1, dtype=torch.float64).cumsum(0)  # (K,)
    return torch.searchsorted(cumulative / cumulative[-1], uniform, right=True)


def draw_levels(
    seed: int, name: str, groups: Groups, counters: tuple[int, ...], sharing: Sharing, lower: Tensor, shift: float
) -> Tensor:
    """Noise levels tau, float64 (N,), uniform in unshifted time between `lower` (N,) and 1 (as in TDM)."""
    uniform = seeds.uniform(seed, name, (groups.iteration, *counters), sharing_ids(groups, sharing))
    return draw_tau(uniform, lower, shift)


def noise_for(
    seed: int, name: str, groups: Groups, counters: tuple[int, ...], rows: Tensor, sharing: Sharing, like: Tensor
) -> Tensor:
    """Standard normal noise (B, C, H, W) for the images `rows` (B,), with dtype and device of `like` (…, C, H, W)."""
    ids = sharing_ids(groups, sharing)
    chosen = [ids[row] for row in rows.tolist()]
    return seeds.noise(seed, name, (groups.iteration, *counters), chosen, like.shape[-3:]).to(like)


def latents_at(trajectory: Trajectory, step_index: Tensor, rows: Tensor, device: torch.device) -> Tensor:
    """The stored latents (B, C, H, W) of the images `rows` (B,), each at its step in `step_index` (N,), on a device."""
    return trajectory.latents[step_index[rows], rows].to(device)
