"""Every branch of the losses, compared with values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tdmr1_core.algorithm.objectives import (
    GeneratorWeights,
    PreferenceLoss,
    Stabilisers,
    cfg_loss,
    direction_loss,
    direction_normaliser,
    fake_score_loss,
    fake_target,
    generator_loss,
    joint_huber_loss,
    preference_loss,
    preference_weights,
    sample_mse,
)

pytestmark = pytest.mark.unit


def numbers(*values: float) -> Tensor:
    """A float64 tensor (N,)."""
    return torch.tensor(values, dtype=torch.float64)


def pairs(*values: tuple[float, float]) -> Tensor:
    """Latents (B, 1, 1, 2)."""
    return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1, 2)


def assert_equal(found: Tensor, *expected: float) -> None:
    """Check every number."""
    assert found.flatten().tolist() == pytest.approx(list(expected), rel=1e-12, abs=1e-12)


def test_sample_mse() -> None:
    assert_equal(sample_mse(pairs((1, 2), (0, 0)), pairs((0, 5), (1, 1))), 5, 1)


def test_fake_target() -> None:
    # (x_tau - x_0) / tau, so that x_tau - tau * target is x_0.
    assert_equal(fake_target(pairs((3, 1), (0, 2)), pairs((1, 1), (1, 1)), numbers(0.5, 0.25)), 4, 0, -4, 4)


def test_fake_score_loss() -> None:
    # ((1-3)^2 + 0) / 2 = 2 and ((1-1)^2 + (2-6)^2) / 2 = 8: 2 + 0.02 * 8.
    fake = pairs((1, 2)).requires_grad_()
    loss = fake_score_loss(fake, pairs((3, 2)), pairs((1, 6)), 0.02)
    assert_equal(loss, 2.16)
    loss.sum().backward()
    # d/df: (f - target) + 0.02 (f - teacher).
    assert fake.grad is not None
    assert_equal(fake.grad, -2, -0.08)
    assert_equal(fake_score_loss(fake, pairs((3, 2)), None, 0.02), 2)


def test_preference_weights_by_hand() -> None:
    # Group 1: (1 * (3 - 1) - 1 * (1 - 1)) * 0.5 / 2 = 0.5; group 2: (2 * (0 - 1) - 2 * (0 - 0)) * 0.5 / 2 = -0.5.
    found = preference_weights(numbers(1, -1, 2, -2), numbers(3, 1, 0, 0), numbers(1, 1, 1, 0), 0.5, 2)
    high, low = 0.6224593312018546, 0.3775406687981454
    assert_equal(found, high, high, low, low)


def test_preference_weights_fall_as_the_surrogate_learns() -> None:
    """The weight is small once the loss is below the reference's where A > 0 and above it where A < 0."""
    reference = numbers(1, 1)
    learnt = preference_weights(numbers(1, -1), numbers(0.5, 1.5), reference, 10, 2)
    wrong = preference_weights(numbers(1, -1), numbers(1.5, 0.5), reference, 10, 2)
    assert_equal(learnt, *[1 / (1 + math.exp(5))] * 2)
    assert_equal(wrong, *[1 / (1 + math.exp(-5))] * 2)


def test_preference_weights_carry_no_gradient() -> None:
    loss = numbers(1, 2).requires_grad_()
    assert not preference_weights(numbers(1, -1), loss, numbers(1, 1), 1, 2).requires_grad


OFF = Stabilisers(None, None, 0.0)


def preference(
    stabilisers: Stabilisers,
    advantage: float,
    velocity: float,
    reference: float,
    old_loss: float | None = None,
    time_weight: float = 1.0,
) -> tuple[PreferenceLoss, float]:
    """The loss of one sample of two numbers with target 0 and w_g = 0.5, and the gradient of the first number."""
    v = pairs((velocity, velocity)).requires_grad_()
    result = preference_loss(
        v,
        pairs((0, 0)),
        pairs((reference, reference)),
        None if old_loss is None else numbers(old_loss),
        numbers(advantage),
        numbers(0.5),
        numbers(time_weight),
        stabilisers,
    )
    result.loss.sum().backward()
    assert v.grad is not None
    return result, v.grad.flatten()[0].item()


def test_preference_loss_without_stabilisers() -> None:
    # Loss 0.5 * 2 * 9 = 9; gradient of one of two numbers 0.5 * 2 * 3.
    result, gradient = preference(OFF, 2, 3, 0, old_loss=1e6)
    assert_equal(result.loss, 9)
    assert gradient == pytest.approx(3)
    assert (result.clipped.item(), result.drifted.item()) == (False, False)
    assert_equal(result.drift, 9)
    assert not result.drift.requires_grad


def test_penalty_and_time_weight() -> None:
    # 0.75 * (0.5 * 2 * 9 + 0.1 * (3 - 1)^2) = 0.75 * 9.4; gradient 0.75 * (3 + 0.1 * 2).
    result, gradient = preference(Stabilisers(None, None, 0.1), 2, 3, 1, time_weight=0.75)
    assert_equal(result.loss, 7.05)
    assert gradient == pytest.approx(2.4)


@pytest.mark.parametrize(
    ("advantage", "ratio", "clipped"),
    [
        (1, 1.11, True),
        (1, 1.09, False),
        (1, 0.5, False),
        (-1, 0.89, True),
        (-1, 0.91, False),
        (-1, 2.0, False),
        (0, 0.89, True),
        (0, 1.11, False),
    ],
)
def test_trust_region(advantage: float, ratio: float, clipped: bool) -> None:
    # l = 9, so l_old = 9 + ln(ratio).
    result, gradient = preference(Stabilisers(0.1, None, 0.0), advantage, 3, 0, old_loss=9 + math.log(ratio))
    assert result.clipped.item() is clipped
    assert result.drifted.item() is False
    assert gradient == pytest.approx(0 if clipped else 1.5 * advantage)
    assert_equal(result.loss, 0 if clipped else 4.5 * advantage)


@pytest.mark.parametrize(
    ("advantage", "velocity", "reference", "threshold", "drifted"),
    [
        (1, 1, 2, 0.9, True),  # closer to the target than the reference, drift above the threshold
        (1, 1, 2, 1.1, False),  # drift below the threshold
        (1, 2, 1, 0.9, False),  # drift above the threshold, but farther from the target than the reference
        (-1, 2, 1, 0.9, True),
        (-1, 1, 2, 0.9, False),
        (0, 2, 1, 0.9, True),
        (1, 2, -2, 0.9, False),  # as far from the target as the reference
        (-1, 2, -2, 0.9, False),
    ],
)
def test_drift(advantage: float, velocity: float, reference: float, threshold: float, drifted: bool) -> None:
    result, gradient = preference(Stabilisers(None, threshold, 0.0), advantage, velocity, reference)
    assert result.drifted.item() is drifted
    assert result.clipped.item() is False
    assert gradient == pytest.approx(0 if drifted else 0.5 * advantage * velocity)


def test_masked_samples_keep_the_penalty() -> None:
    # v = 1, v_ref = 2: penalty 0.1 * 1, its gradient 0.1 * (1 - 2).
    result, gradient = preference(Stabilisers(0.1, 0.5, 0.1), 1, 1, 2, old_loss=5)
    assert (result.clipped.item(), result.drifted.item()) == (True, True)
    assert_equal(result.loss, 0.1)
    assert gradient == pytest.approx(-0.1)


def test_drift_is_decided_per_sample() -> None:
    v = pairs((1, 1), (1.9, 1.9))
    ones = torch.ones(2, dtype=torch.float64)
    result = preference_loss(
        v, pairs((0, 0), (0, 0)), pairs((2, 2), (2, 2)), None, ones, ones, ones, Stabilisers(None, 0.5, 0.0)
    )
    assert result.drifted.tolist() == [True, False]
    assert_equal(result.loss, 0, 3.61)


def test_direction_loss_squared() -> None:
    clean, d = pairs((1, 2), (0, 0)).requires_grad_(), pairs((3, -1), (2, 0))
    loss = direction_loss(clean, d, numbers(0.5, 4), kind="squared")
    # (9 + 1) / 2 / 0.5 and (4 + 0) / 2 / 4.
    assert_equal(loss, 10, 0.5)
    loss.sum().backward()
    # -2 d / (w * 2).
    assert clean.grad is not None
    assert_equal(clean.grad, -6, 2, -0.5, 0)


def test_direction_loss_huber() -> None:
    # c = 4 and e = 3, 0: (sqrt(9 + 16) - 4 + sqrt(0 + 16) - 4) / 2 / 0.5.
    clean = pairs((1, 2)).requires_grad_()
    loss = direction_loss(clean, pairs((3, 0)), numbers(0.5), kind="huber", huber_c=4)
    assert_equal(loss, 1)
    loss.sum().backward()
    # -e / sqrt(e^2 + c^2) / (2 w) = -3/5.
    assert clean.grad is not None
    assert_equal(clean.grad, -0.6, 0)


def test_default_huber_loss_is_nearly_the_absolute_error() -> None:
    loss = direction_loss(pairs((0, 0)), pairs((3, -5)), numbers(2), kind="huber")
    assert loss.item() == pytest.approx((3 + 5 - 2e-3) / 4, rel=1e-6)


def test_cfg_loss_has_the_guidance_factor_only_with_huber() -> None:
    clean, d, w = pairs((1, 2)), pairs((3, 0)), numbers(0.5)
    # (9 + 0) / 2 / 0.5; and 1 as in the test above, times 4.5 - 1.
    assert_equal(cfg_loss(clean, d, w, kind="squared", huber_c=4, guidance_scale=4.5), 9)
    assert_equal(cfg_loss(clean, d, w, kind="huber", huber_c=4, guidance_scale=4.5), 3.5)


def test_directions_carry_no_gradient() -> None:
    clean, d = pairs((1, 2)).requires_grad_(), pairs((3, -1)).requires_grad_()
    for kind in ("squared", "huber"):
        direction_loss(clean, d, numbers(1), kind=kind).sum().backward()
    assert d.grad is None


def test_direction_normaliser() -> None:
    clean, guided = pairs((1, 2), (0, 0)).requires_grad_(), pairs((-1, 3), (1e-6, 0)).requires_grad_()
    found = direction_normaliser(clean, guided, 1e-4)
    assert_equal(found, 1.5, 1e-4)
    assert not found.requires_grad


def test_joint_huber_loss() -> None:
    # c = 2 and w = 0.5: e_kl = 1, 0 and e_cfg = 2, 0: (sqrt(1 + 4 + 4) - 2 + sqrt(4) - 2) / 2 / 0.5.
    clean = pairs((1, 2)).requires_grad_()
    d_kl, d_cfg = pairs((1, 0)).requires_grad_(), pairs((2, 0)).requires_grad_()
    loss = joint_huber_loss(clean, d_kl, d_cfg, numbers(0.5), 2)
    assert_equal(loss, 1)
    loss.sum().backward()
    # -(e_kl + e_cfg) / sqrt(e_kl^2 + e_cfg^2 + c^2) / (2 w).
    assert clean.grad is not None
    assert_equal(clean.grad, -1, 0)
    assert (d_kl.grad, d_cfg.grad) == (None, None)


def test_joint_huber_loss_without_guidance_is_the_loss_of_the_kl_term() -> None:
    clean, d, w = pairs((1, 2), (0, 3)), pairs((3, 0), (-4, 1)), numbers(0.5, 2)
    found = joint_huber_loss(clean, d, torch.zeros_like(d), w, 4)
    assert_equal(found, *direction_loss(clean, d, w, kind="huber", huber_c=4).tolist())


def test_generator_loss_branches() -> None:
    kl, cfg, reward = numbers(1, 1, 1, 1), numbers(10, 10, 10, 10), numbers(100, 100, 100, 100)
    unrewarded, steps = numbers(5, 6, 7, 8), torch.tensor([0, 1, 2, 3])

    def loss(tdm_weight: float, reward_scale: float, trunc_steps: int) -> Tensor:
        weights = GeneratorWeights(tdm_weight, reward_scale, trunc_steps)
        return generator_loss(kl, cfg, reward, unrewarded, steps, weights)

    # Before: 0.3 * 10 + 0.7 * 100 + 1 = 74; after: 0.3 * 5, 0.3 * 6 ...
    assert_equal(loss(0.3, 1.0, 2), 74, 74, 2.1, 2.4)
    assert_equal(loss(0.3, 1.0, 4), 74, 74, 74, 74)
    assert_equal(loss(0.3, 1.0, 0), 1.5, 1.8, 2.1, 2.4)
    # Half the reward: 3 + 35 + 1; none at all: 4.
    assert_equal(loss(0.3, 0.5, 1), 39, 1.8, 2.1, 2.4)
    assert_equal(loss(0.3, 0.0, 4), 4, 4, 4, 4)
    assert_equal(loss(1.0, 1.0, 4), 11, 11, 11, 11)
