"""The records that the stages pass to each other. Image i of a batch belongs to group i // group_size.

Symbols in shapes: N = groups x group_size images, B rows, K sampling steps, latents (C, H, W), L prompt tokens of width
D, pooled embeddings of width P.
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
    """Encoded prompts, one row each: token embeddings (B, L, D), pooled embeddings (B, P), and which tokens count.

    `lengths` int64 (B,), on the CPU, is the number of tokens of each row; the rest of the row is padding. It is None
    where no row has padding. `mask` bool (B, L), on the CPU, is given instead where the padding is in the middle: it is
    False for padding.
    """

    embeddings: Tensor
    pooled: Tensor
    lengths: Tensor | None = None
    mask: Tensor | None = None

    def __len__(self) -> int:
        return len(self.embeddings)

    def select(self, rows: Tensor | Sequence[int]) -> Conditioning:
        """The given rows, in that order. A row may be repeated."""
        index = torch.as_tensor(rows, device=self.embeddings.device)
        lengths = None if self.lengths is None else self.lengths[index.cpu()]
        mask = None if self.mask is None else self.mask[index.cpu()]
        return Conditioning(self.embeddings[index], self.pooled[index], lengths, mask)

    def to(self, device: torch.device) -> Conditioning:
        """The same conditioning with its embeddings on another device."""
        return replace(self, embeddings=self.embeddings.to(device), pooled=self.pooled.to(device))

    def expand(self, size: int) -> Conditioning:
        """A single row, repeated `size` times."""
        lengths = None if self.lengths is None else self.lengths.expand(size)
        mask = None if self.mask is None else self.mask.expand(size, -1)
        return Conditioning(self.embeddings.expand(size, -1, -1), self.pooled.expand(size, -1), lengths, mask)

    @property
    def texts(self) -> list[Tensor]:
        """The token embeddings of each row without padding at its end, (length, D) each."""
        if self.lengths is None:
            return list(self.embeddings)
        rows = zip(self.embeddings, self.lengths.tolist(), strict=True)
        return [embeddings[:length] for embeddings, length in rows]

    @property
    def token_counts(self) -> Tensor:
        """The number of tokens of each row without padding at its end, int64 (B,), on the device of the embeddings."""
        if self.lengths is None:
            return torch.full((len(self),), self.embeddings.shape[1], device=self.embeddings.device)
        return self.lengths.to(self.embeddings.device)

    @property
    def token_mask(self) -> Tensor | None:
        """bool (B, L), on the device of the embeddings: False for padding. None where no row has padding."""
        if self.mask is not None:
            return None if bool(self.mask.all()) else self.mask.to(self.embeddings.device)
        longest = self.embeddings.shape[1]
        if self.lengths is None or bool((self.lengths == longest).all()):
            return None
        return torch.arange(longest, device=self.embeddings.device) < self.token_counts.unsqueeze(1)

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """Concatenate the rows of several conditionings. Those with lengths are padded to the longest."""
        pooled = torch.cat([part.pooled for part in parts])
        lengths = [part.lengths for part in parts if part.lengths is not None]
        if not lengths:
            masks = [part.mask for part in parts if part.mask is not None]
            mask = torch.cat(masks) if masks else None
            return Conditioning(torch.cat([part.embeddings for part in parts]), pooled, mask=mask)
        longest = max(part.embeddings.shape[1] for part in parts)  # tokens
        padded = [
            torch.nn.functional.pad(part.embeddings, (0, 0, 0, longest - part.embeddings.shape[1])) for part in parts
        ]
        return Conditioning(torch.cat(padded), pooled, torch.cat(lengths))


@dataclass(frozen=True)
class Groups:
    """The groups of one iteration: one prompt per group, and `group_size` images per prompt.

    With several processes, these are the groups of this process, and `first` is the index of its first group among
    those of all processes.
    """

    iteration: int
    prompts: tuple[Prompt, ...]
    group_size: int
    first: int = 0

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def images(self) -> int:
        """N, the number of images: groups x group_size."""
        return len(self.prompts) * self.group_size

    @property
    def group_of_image(self) -> list[int]:
        """The group index of each image, (N,), from 0."""
        return [group for group in range(len(self.prompts)) for _ in range(self.group_size)]

    @property
    def image_ids(self) -> range:
        """The index of each image, (N,), among the images of all processes."""
        return range(self.first * self.group_size, self.first * self.group_size + self.images)


@dataclass(frozen=True)
class Trajectory:
    """A rollout: every latent of every image.

    `latents` (K+1, N, C, H, W) go from noise to the clean latent, `sigmas` float64 (K+1,) decrease to 0.
    `conditioning` has one row per group. `images` are uint8 (N, height, width, 3), or None if they were not decoded.

    `stored_velocity` is True if the velocity of the generator can be recovered from neighboring latents
    (deterministic Euler steps). It is the velocity of the generator after `generator_updates` updates.
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

    def conditioning_for(self, rows: Tensor) -> Conditioning:
        """The conditioning of the images `rows` (B,): each image has that of its group."""
        return self.conditioning.select(rows // self.groups.group_size)


@dataclass(frozen=True)
class Scores:
    """The rewards of N images: the combined reward, its validity, and the scores of each reward.

    `total` float64 (N,) is the combined reward; it is 0 where `valid` bool (N,) is False. `per_reward` maps the name of
    a reward to one float or None per image, `details` has one mapping per image. `failed` counts, per reward, the
    images that were skipped because the reward failed; `unjudged` counts those for which it returned None.
    """

    total: Tensor
    valid: Tensor
    per_reward: Mapping[str, Sequence[float | None]]
    details: Sequence[Mapping[str, Any]]
    failed: Mapping[str, int] = field(default_factory=dict)
    unjudged: Mapping[str, int] = field(default_factory=dict)

    @staticmethod
    def cat(parts: Sequence[Scores]) -> Scores:
        """Concatenate scores of the same rewards."""
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
    """Advantages float64 (N,), which sum to 0 in every group, and the fraction of groups without signal (0 to 1).

    With several processes, `values` are those of this process, `zero_std_ratio` is that of all processes, and
    `on_other_ranks` is True if any process has an advantage that is not 0. Raises Tdmr1Error for values that are NaN or
    infinite.
    """

    values: Tensor
    zero_std_ratio: float
    on_other_ranks: bool = False

    def __post_init__(self) -> None:
        not_finite = int((~self.values.isfinite()).sum())
        if not_finite:
            raise Tdmr1Error(
                f"{not_finite} of {len(self.values)} advantages are NaN or infinite",
                "pass finite rewards, and mark images without a reward as not valid",
                code="reward-combined",
                values={"not_finite": not_finite, "images": len(self.values)},
            )

    @property
    def has_signal(self) -> bool:
        """Whether any image of any process has an advantage that is not 0."""
        return self.on_other_ranks or bool(self.values.abs().max() > 0)


@dataclass(frozen=True)
class UpdateStats:
    """The metrics of one update of a role, or the reason why it was skipped."""

    role: str
    metrics: Mapping[str, float]
    skipped: str | None = None


@dataclass(frozen=True)
class IterationReport:
    """One iteration: its number from 1, the metrics written to metrics.jsonl, and the updates that were skipped."""

    step: int
    metrics: Mapping[str, float]
    skipped: tuple[str, ...] = ()
