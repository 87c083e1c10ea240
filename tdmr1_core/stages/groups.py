"""The order in which prompts are drawn."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tdmr1_core.algorithm import seeds
from tdmr1_core.records import Groups, Prompt


def next_groups(prompts: Sequence[Prompt], iteration: int, groups: int, group_size: int, seed: int) -> Groups:
    """The prompts of an iteration (from 0): the set is walked through in a new random order each time it is used up."""
    chosen = []
    for position in range(iteration * groups, (iteration + 1) * groups):
        epoch, place = divmod(position, len(prompts))
        order = torch.randperm(len(prompts), generator=seeds.stream(seed, "prompts", epoch))
        chosen.append(prompts[int(order[place])])
    return Groups(iteration, tuple(chosen), group_size)
