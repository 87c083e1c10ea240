"""Scores images of any size with one reward, outside a run; used by `tdmr1 rewards try` and `check`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from tdmr1_rewards.api import Reward, RewardBatch, RewardContext, RewardSpec
from tdmr1_rewards.calling.reference import Reference
from tdmr1_rewards.registry import Provenance
from tdmr1_rewards.scoring.active_reward import ActiveReward
from tdmr1_rewards.scoring.runner import RewardRunner


@dataclass(frozen=True, eq=False)
class ImageToScore:
    """An image, uint8 (H, W, 3), with its prompt and metadata. `group` is its group id, as in RewardBatch."""

    image: np.ndarray
    prompt: str
    metadata: Mapping[str, Any]
    group: int = 0


@dataclass(frozen=True)
class ImageScore:
    """The score of an image, or None, and its details."""

    score: float | None
    details: Mapping[str, Any]


class SingleReward:
    """Runs one reward through a RewardRunner, so that batches and checks are the same as in a training.

    The arguments are those of ActiveReward. Raises Tdmr1Error if a reward in another process cannot be built.
    """

    def __init__(
        self,
        spec: RewardSpec,
        reward: Reward | Reference,
        provenance: Provenance,
        device: str = "cpu",
        python: Path | None = None,
    ) -> None:
        self._name = spec.name
        entry = ActiveReward(spec.name, 1.0, spec, reward, provenance, python=python, in_run=False)
        self._runner = RewardRunner([entry], "weighted_sum", workers=1, device=device)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.close()

    @property
    def groupwise(self) -> bool:
        """Whether a call gets whole groups only. A reward on a server is set up first: the server has its spec."""
        self._runner.set_up_served()
        return self._runner.specs()[self._name].groupwise

    def __call__(self, images: Sequence[ImageToScore]) -> list[ImageScore]:
        """The score of each image, in order. Images of the same size are scored in one batch.

        Raises RewardFailed if the reward raises or returns an invalid result.
        """
        by_size: dict[tuple[int, ...], list[int]] = {}
        for index, image in enumerate(images):
            by_size.setdefault(image.image.shape, []).append(index)
        scores: dict[int, ImageScore] = {}
        for indices in by_size.values():
            scores.update(zip(indices, self._score([images[i] for i in indices], indices), strict=True))
        return [scores[index] for index in range(len(images))]

    def _score(self, images: Sequence[ImageToScore], image_ids: Sequence[int]) -> list[ImageScore]:
        """The scores of images of one size."""
        batch = RewardBatch(
            images=np.stack([image.image for image in images]),  # (N, H, W, 3)
            prompts=[image.prompt for image in images],
            metadata=[image.metadata for image in images],
            group_ids=[image.group for image in images],
            image_ids=list(image_ids),
            context=RewardContext(None, 0, 0),
        )
        scored = self._runner.score(batch)
        scores = scored.per_reward[self._name]
        details = [entry.get(self._name, {}) for entry in scored.details]
        return [ImageScore(score, entry) for score, entry in zip(scores, details, strict=True)]
