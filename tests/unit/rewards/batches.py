"""Batches for tests that call a reward directly."""

from __future__ import annotations

from pathlib import Path

from tdmr1_rewards.api import RewardBatch, RewardContext


def batch_of(images, prompts, metadata=None, run_folder: Path | None = None) -> RewardBatch:
    """N images with their prompts, in one group."""
    count = len(prompts)
    return RewardBatch(
        images=images,
        prompts=prompts,
        metadata=metadata or [{}] * count,
        group_ids=[0] * count,
        image_ids=list(range(count)),
        context=RewardContext(run_folder, 0, 0),
    )
