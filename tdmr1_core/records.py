"""The records that travel between the stages. Images lie group by group: image i belongs to group i // group_size.

Names: N images = groups x group_size, K sampling steps, latents (C, H, W), L prompt tokens of width D, P pooled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.prompts.prompt import Prompt


@dataclass(frozen=True)
class Conditioning:
    """Encoded prompts: token embeddings (B, L, D), pooled embeddings (B, P), and how many tokens of each row count.

    `lengths` int64 (B,), on the CPU, is None where all of them do; the rest of a row is padding.
    """

    embeddings: Tensor
    pooled: Tensor
    lengths: Tensor | None = None

    def __len__(self) -> int:
        return len(self.embeddings)

    def select(self, rows: Tensor | Sequence[int]) -> Conditioning:
        """The given rows, in that order; a row may come more than once."""
        index = torch.as_tensor(rows, device=self.embeddings.device)
        lengths = None if self.lengths is None else self.lengths[index.cpu()]
        return Conditioning(self.embeddings[index], self.pooled[index], lengths)

    def to(self, device: torch.device) -> Conditioning:
        """The embeddings on another device."""
        return replace(self, embeddings=self.embeddings.to(device), pooled=self.pooled.to(device))

    def expand(self, size: int) -> Conditioning:
        """One prompt repeated for `size` rows."""
        lengths = None if self.lengths is None else self.lengths.expand(size)
        return Conditioning(self.embeddings.expand(size, -1, -1), self.pooled.expand(size, -1), lengths)

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """Several conditionings one after another, those with lengths padded to the longest."""
        pooled = torch.cat([part.pooled for part in parts])
        lengths = [part.lengths for part in parts if part.lengths is not None]
        if not lengths:
            return Conditioning(torch.cat([part.embeddings for part in parts]), pooled)
        longest = max(part.embeddings.shape[1] for part in parts)
        padded = [
            torch.nn.functional.pad(part.embeddings, (0, 0, 0, longest - part.embeddings.shape[1])) for part in parts
        ]
        return Conditioning(torch.cat(padded), pooled, torch.cat(lengths))


@dataclass(frozen=True)
class Groups:
    """What one iteration samples: a prompt for each group and the number of images drawn for it.

    Where several processes share an iteration these are one's own, and `first` is the number of its first group.
    """

    iteration: int
    prompts: tuple[Prompt, ...]
    group_size: int
    first: int = 0

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def images(self) -> int:
        """How many images: groups x group size."""
        return len(self.prompts) * self.group_size

    @property
    def group_of_image(self) -> list[int]:
        """The group of every image, (N,), counted from 0."""
        return [group for group in range(len(self.prompts)) for _ in range(self.group_size)]

    @property
    def image_ids(self) -> range:
        """The number of every image, (N,), among those of all processes."""
        return range(self.first * self.group_size, self.first * self.group_size + self.images)


@dataclass(frozen=True)
class Trajectory:
    """A rollout with everything kept.

    `latents` (K+1, N, C, H, W) from noise to picture, `sigmas` (K+1,) float64 from 1 to 0, `conditioning` one row a
    group, `images` uint8 (N, height, width, 3), or None where
    nothing looks at them. `stored_velocity` says whether neighbouring latents give back the
    generator's velocity (deterministic Euler steps); that holds while the generator has made `generator_updates`.
    """

    groups: Groups
    latents: Tensor
    sigmas: Tensor
    conditioning: Conditioning
    images: np.ndarray | None
    stored_velocity: bool
    generator_updates: int

    @property
    def steps(self) -> int:
        """K, the number of sampling steps."""
        return len(self.sigmas) - 1


@dataclass(frozen=True)
class Scores:
    """Rewards of N images: the combined value, whether it counts, and every reward's own answers.

    `total` float64 (N,), 0 where `valid` (N,) is False; `per_reward` holds a float or None for each image. `failed`
    counts the images a reward failed on and was to skip, `unjudged` those that it was asked about and answered None.
    """

    total: Tensor
    valid: Tensor
    per_reward: Mapping[str, Sequence[float | None]]
    details: Sequence[Mapping[str, Any]]
    failed: Mapping[str, int] = field(default_factory=dict)
    unjudged: Mapping[str, int] = field(default_factory=dict)

    @staticmethod
    def cat(parts: Sequence[Scores]) -> Scores:
        """Several scores by the same rewards one after another."""
        names = parts[0].per_reward
        return Scores(
            total=torch.cat([part.total for part in parts]),
            valid=torch.cat([part.valid for part in parts]),
            per_reward={name: [score for part in parts for score in part.per_reward[name]] for name in names},
            details=[detail for part in parts for detail in part.details],
            failed={name: sum(part.failed.get(name, 0) for part in parts) for name in names},
            unjudged={name: sum(part.unjudged.get(name, 0) for part in parts) for name in names},
        )


@dataclass(frozen=True)
class Advantages:
    """Advantages float64 (N,) that sum to 0 in every group, and the share of groups that teach nothing (0 to 1).

    Where several processes share an iteration the values are one's own, the share is that of all, and `elsewhere` says
    whether the images of another process have advantages. Raises Tdmr1Error for values that are not finite.
    """

    values: Tensor
    zero_std_ratio: float
    on_other_ranks: bool = False

    def __post_init__(self) -> None:
        broken = int((~self.values.isfinite()).sum())
        if broken:
            raise Tdmr1Error(
                f"{broken} of {len(self.values)} advantages are not finite", "look at what the rewards say"
            )

    @property
    def has_signal(self) -> bool:
        """Whether any image of any process has an advantage at all."""
        return self.on_other_ranks or bool(self.values.abs().max() > 0)


@dataclass(frozen=True)
class UpdateStats:
    """What one update of a role reports: named numbers, or why it was left out."""

    role: str
    metrics: Mapping[str, float]
    skipped: str | None = None


@dataclass(frozen=True)
class IterationReport:
    """One iteration: its number from 1, flat metrics as written to metrics.jsonl, and the vetoes that were obeyed."""

    step: int
    metrics: Mapping[str, float]
    skipped: tuple[str, ...] = ()
