"""A loss or gradient that is NaN or infinite changes no weight, optimizer state, average or metric."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.errors import raises
from support.product import ADVANTAGES, EACH, SECTIONS, UPDATES, engine_and_trajectory
from torch import Tensor

from tdmr1_core.engine import MAX_NOT_FINITE, Engine
from tdmr1_core.models.roles import FAKE, GENERATOR, SURROGATE
from tdmr1_core.records import Scores, Trajectory
from tdmr1_core.stages.scoring import reward_metrics

pytestmark = pytest.mark.unit

BATCH = {"batch": {"groups": 2, "group_size": 3, "micro_batch": 3}}


def engine_that(policy: str, **sections: Any) -> tuple[Engine, Trajectory]:
    return engine_and_trajectory({**EACH, **BATCH, "optimizer": {"on_not_finite": policy}, **sections})


def with_a_bad_image(trajectory: Trajectory, bad: float) -> Trajectory:
    """The trajectory with the latents of image 4 of 6 set to `bad`."""
    latents = trajectory.latents.clone()
    latents[:, 4] = bad
    return replace(trajectory, latents=latents)


def everything(engine: Engine) -> dict[str, Tensor]:
    return {
        f"{role}/{name}": value for role in engine.roles.names for name, value in engine.roles.weights(role).items()
    }


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("role", [FAKE, SURROGATE, GENERATOR])
def test_the_run_stops_with_role_step_and_images(role, bad):
    engine, good = engine_that("stop")
    before, trajectory = everything(engine), with_a_bad_image(good, bad)
    with raises("update-not-finite", role=role, step=1, iteration=1, in_a_row=1) as caught:
        UPDATES[role](engine, trajectory)
    assert re.match(r"the loss is (nan|inf) for images 3 to 5", caught.value.values["reason"])
    assert "optimizer.on_not_finite" in caught.value.hint
    assert f"{role}.learning_rate" in caught.value.hint
    check_untouched(engine, before)


def check_untouched(engine: Engine, before: dict[str, Tensor]) -> None:
    assert all(value.equal(before[name]) for name, value in everything(engine).items())
    for trained in engine.trained.values():
        assert trained.updates == 0
        assert not trained.optimizer.state
        assert all(weight.grad is None for weight in trained.parameters.values())


@pytest.mark.parametrize("role", [FAKE, SURROGATE, GENERATOR])
def test_the_update_is_skipped_and_the_next_one_is_made(role):
    engine, good = engine_that("skip")
    before = everything(engine)
    stats = UPDATES[role](engine, with_a_bad_image(good, math.nan))
    assert "for images 3 to 5" in stats.skipped
    assert not stats.metrics
    check_untouched(engine, before)
    assert UPDATES[role](engine, good).metrics[f"grad_norm/{role}"] > 0
    report = engine._finish(good.groups, 0.0)
    assert report.metrics[f"not_finite/{role}"] == 1
    assert any(reason.startswith(f"{role}: the loss is nan") for reason in report.skipped)
    assert all(math.isfinite(value) for value in report.metrics.values())


def test_one_bad_step_skips_the_whole_accumulated_update():
    engine, good = engine_that("skip", timesteps=SECTIONS["timesteps"])
    before = everything(engine)
    engine.update_generator(with_a_bad_image(good, math.nan), ADVANTAGES, 0)
    stats = engine.update_generator(good, ADVANTAGES, 1)
    assert stats.skipped
    check_untouched(engine, before)
    assert all(math.isfinite(value) for value in engine._finish(good.groups, 0.0).metrics.values())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_rewards_that_are_not_finite_are_an_error(bad):
    engine, _ = engine_that("skip")
    total, valid = torch.tensor([0.0, 1.0, 2.0, bad, bad, bad], dtype=torch.float64), torch.tensor([True] * 6)
    with raises("reward-combined", image=3, reward=str(bad)):
        engine.advantages(Scores(total, valid, {}, ()))
    large = engine.advantages(Scores(torch.tensor([1e200, 2e200, 0.0] * 2, dtype=torch.float64), valid, {}, ()))
    assert large.values.tolist() == pytest.approx([0, 1.5**0.5, -(1.5**0.5)] * 2, abs=1e-12)


def test_reward_metrics_that_overflow_float64_are_omitted():
    scores = Scores(
        torch.tensor([1e200, 2e200], dtype=torch.float64), torch.tensor([True] * 2), {"a": [1e200, 2e200]}, ()
    )
    metrics = reward_metrics(scores)
    assert metrics["reward/mean"] == metrics["reward/a/mean"] == 1.5e200
    assert not {"reward/std", "reward/a/std"} & metrics.keys()


def test_too_many_consecutive_skipped_updates_stop_the_run():
    engine, good = engine_that("skip")
    bad = with_a_bad_image(good, math.nan)
    for _ in range(MAX_NOT_FINITE - 1):
        engine.update_fake(bad)
    with raises("update-not-finite", role=FAKE, in_a_row=MAX_NOT_FINITE):
        engine.update_fake(bad)


def test_a_gradient_that_is_not_finite_with_a_finite_loss():
    engine, good = engine_that("skip")
    weight = next(iter(engine.trained[FAKE].parameters.values()))
    handle = weight.register_hook(lambda gradient: gradient * math.inf)
    stats = engine.update_fake(good)
    handle.remove()
    assert "the norm of the gradient is" in stats.skipped
