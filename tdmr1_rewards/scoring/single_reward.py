"""One reward asked about pictures of any sizes, outside a run: what `try` and `check` do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from tdmr1_rewards.api import Reward, RewardBatch, RewardContext, RewardSpec
from tdmr1_rewards.registry import Provenance
from tdmr1_rewards.scoring.active_reward import ActiveReward
from tdmr1_rewards.scoring.runner import RewardRunner


@dataclass(frozen=True, eq=False)
class ImageToScore:
    """A picture to be judged: uint8 (H, W, 3), its prompt, and what is known of the prompt; `group` as in a batch."""

    image: np.ndarray
    prompt: str
    metadata: Mapping[str, Any]
    group: int = 0


@dataclass(frozen=True)
class ImageScore:
    """What a reward said of a picture: a score or None, and details."""

    score: float | None
    details: Mapping[str, Any]


class SingleReward:
    """A reward that is set up, through the runner that a training uses: the same batches, the same checks."""

    def __init__(self, spec: RewardSpec, reward: Reward, provenance: Provenance, device: str = "cpu") -> None:
        self._name = spec.name
        entry = ActiveReward(spec.name, 1.0, spec, reward, provenance)
        self._runner = RewardRunner([entry], "weighted_sum", workers=1, device=device)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.close()

    def __call__(self, pictures: Sequence[ImageToScore]) -> list[ImageScore]:
        """A verdict for each picture, in order; those of one size are handed over together.

        Raises Tdmr1Error if the reward raises or breaks its contract.
        """
        by_size: dict[tuple[int, ...], list[int]] = {}
        for index, picture in enumerate(pictures):
            by_size.setdefault(picture.image.shape, []).append(index)
        verdicts: dict[int, ImageScore] = {}
        for indices in by_size.values():
            verdicts.update(zip(indices, self._ask([pictures[i] for i in indices], indices), strict=True))
        return [verdicts[index] for index in range(len(pictures))]

    def _ask(self, pictures: Sequence[ImageToScore], image_ids: Sequence[int]) -> list[ImageScore]:
        batch = RewardBatch(
            images=np.stack([picture.image for picture in pictures]),
            prompts=[picture.prompt for picture in pictures],
            metadata=[picture.metadata for picture in pictures],
            group_ids=[picture.group for picture in pictures],
            image_ids=list(image_ids),
            context=RewardContext(None, 0, 0),
        )
        scored = self._runner.score(batch)
        scores = scored.per_reward[self._name]
        return [ImageScore(score, told.get(self._name, {})) for score, told in zip(scores, scored.details, strict=True)]
