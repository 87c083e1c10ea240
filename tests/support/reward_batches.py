"""Reward batches and active rewards, for tests of the code that runs rewards."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from support.paths import TESTS
from tdmr1_rewards.api import RewardBatch, RewardContext, RewardSpec
from tdmr1_rewards.calling.reference import Reference
from tdmr1_rewards.registry import Provenance
from tdmr1_rewards.scoring.active_reward import ActiveReward

FOO = Provenance("foo", "foo-dist", "1.2", "foo_mod")


def active(reward, name="x", weight=1.0, *, spec=None, **settings):
    """An ActiveReward that takes arrays. `spec` changes fields of its spec; `settings` are those of a run's config."""
    fields = {"name": "x", "summary": "", "factory": "a:b", "default_prompts": "count", "image_format": "array"}
    return ActiveReward(name, weight, RewardSpec(**(fields | (spec or {}))), reward, FOO, **settings)


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


def make_batch(*prompts, group_ids=None, metadata=None, run_folder=None, iteration=0, first_id=100):
    """One image of 4 x 5 pixels per prompt; all values of image i are i."""
    count = len(prompts)
    return RewardBatch(
        images=np.arange(count, dtype=np.uint8).repeat(4 * 5 * 3).reshape(count, 4, 5, 3),
        prompts=list(prompts),
        metadata=metadata or [{}] * count,
        group_ids=group_ids or [0] * count,
        image_ids=[first_id + i for i in range(count)],
        context=RewardContext(run_folder, iteration, 0),
    )


def faulty(attr="Faulty", **fields):
    """The reference to a reward in faulty_rewards.py."""
    return Reference(factory=f"support.faulty_rewards:{attr}", paths=[str(TESTS)], **fields)
