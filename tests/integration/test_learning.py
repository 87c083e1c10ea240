"""The surrogate learns a black-box reward. Run these tests before a long training."""

from __future__ import annotations

import pytest
from support.errors import raises

from tdmr1_core.config_loading import parse_assignments, read_preset, resolve
from tdmr1_core.engine import Engine
from tdmr1_core.runs.probe import probe

pytestmark = pytest.mark.learning


def engine(*assignments: str) -> Engine:
    rewards = {"rewards": [{"name": "object_count"}]}
    return Engine.from_config(resolve([read_preset("tiny"), rewards, parse_assignments(assignments)]))


@pytest.mark.parametrize(
    ("pool", "updates", "strengths", "images"),
    [(2, 14, (0.0, 1.0), 96), pytest.param(4, 40, (0.0, 0.5, 1.0), 192, marks=pytest.mark.long)],
    ids=["short", "as the command"],
)
def test_following_the_surrogate_raises_the_true_reward(pool, updates, strengths, images):
    result = probe(engine(), pool=pool, updates=updates, strengths=strengths, images=images)
    assert tuple(point.strength for point in result.points) == strengths
    assert all(point.reward.n == images for point in result.points)
    means = [point.reward.mean for point in result.points]
    assert min(means[1:]) > means[0] + 0.1, result
    assert result.passed, result


@pytest.mark.long
def test_a_surrogate_of_permuted_advantages_learns_nothing():
    result = probe(engine("advantages.permute=true"), pool=4, updates=40, strengths=(0.0, 1.0), images=192)
    assert not result.passed, result
    assert result.gain < 0.05, result


def test_a_probe_needs_a_reward_term():
    with raises("setting-conflict", reward_scale=0):
        probe(engine("generator.reward_scale=0", "batch.groups=1", "batch.group_size=2"))
