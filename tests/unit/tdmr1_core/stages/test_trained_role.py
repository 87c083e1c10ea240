"""The optimizer steps of a trained role, compared with values computed by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tdmr1_core.stages.trained_role import NotFinite, TrainedRole

pytestmark = pytest.mark.unit


def trained_role(max_grad_norm: float = 1.0, **settings: Any) -> tuple[TrainedRole, torch.nn.Parameter]:
    """A role with one parameter of two numbers."""
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    defaults: dict[str, Any] = {"lr": 0.1, "betas": (0.0, 0.999), "eps": 1e-12, "weight_decay": 0.0}
    optimizer = torch.optim.AdamW([weight], **defaults | settings)
    return TrainedRole("fake", {"w": weight}, optimizer, learning_rate=0.1, max_grad_norm=max_grad_norm), weight


def test_one_step() -> None:
    """The first step of AdamW is lr times the sign; weight decay subtracts lr * 0.5 of the weight before."""
    role, weight = trained_role(weight_decay=0.5)
    weight.grad = torch.tensor([3.0, -4.0], dtype=torch.float64)
    assert role.step(1.0) == pytest.approx(5)
    assert weight.tolist() == pytest.approx([1 - 0.05 - 0.1, 2 - 0.1 + 0.1])
    assert weight.grad is None
    assert role.updates == 1


def test_gradients_are_clipped_and_the_learning_rate_is_scaled() -> None:
    """With a large epsilon the step is lr g / epsilon, with g clipped from norm 5 to 1."""
    role, weight = trained_role(eps=1e6)
    weight.grad = torch.tensor([3.0, -4.0], dtype=torch.float64)
    role.step(0.5)
    assert (weight.detach() - torch.tensor([1.0, 2.0])).tolist() == pytest.approx([-0.03e-6, 0.04e-6], rel=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_raises(bad: float) -> None:
    role, weight = trained_role()
    weight.grad = torch.tensor([bad, 1.0], dtype=torch.float64)
    with pytest.raises(NotFinite, match=f"norm of the gradient is {abs(bad)}"):
        role.step(1.0)
    assert weight.tolist() == [1, 2]
    assert weight.grad is None
    assert role.updates == 0
