"""Roles: activation, loading, averaging and copying of LoRA weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.errors import raises
from support.naive import Weights
from support.product import ALPHA, RANK, TARGETS, make_backbone, make_roles, network_inputs
from torch import Tensor

from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.lora.shape import LoraShape
from tdmr1_core.models.roles import FAKE, GENERATOR, GENERATOR_EMA, TEACHER, Roles

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("merged", [True, False])
def test_acting_can_be_nested_and_restores_the_role_after_exceptions(merged: bool) -> None:
    roles = make_roles(merged=merged)

    def velocity() -> Tensor:
        with torch.no_grad():
            return roles.backbone.velocity(*network_inputs())

    expected = {}
    for role in (TEACHER, GENERATOR, FAKE):
        with roles.acting(role):
            expected[role] = velocity()
    assert not torch.equal(expected[TEACHER], expected[GENERATOR])
    assert not torch.equal(expected[FAKE], expected[GENERATOR])
    assert torch.equal(velocity(), expected[TEACHER])
    with roles.acting(GENERATOR):
        with pytest.raises(RuntimeError), roles.acting(FAKE):
            raise RuntimeError
        assert torch.equal(velocity(), expected[GENERATOR])
        with roles.acting(TEACHER):
            assert torch.equal(velocity(), expected[TEACHER])
        assert torch.equal(velocity(), expected[GENERATOR])
    assert torch.equal(velocity(), expected[TEACHER])
    with pytest.raises(KeyError), roles.acting("unknown"):
        pass


def test_new_loras_are_gaussian_with_the_inverse_rank_or_uniform_as_in_peft() -> None:
    gaussian, kaiming = (
        Roles(make_backbone(), LoraShape(16, ALPHA, TARGETS), (GENERATOR,), (), seed=0, init=init)
        for init in ("gaussian", "kaiming")
    )
    for roles in (gaussian, kaiming):
        weights = roles.weights(GENERATOR)
        assert all(not weight.any() for name, weight in weights.items() if "lora_B" in name)
    values = torch.cat([w.flatten() for name, w in gaussian.weights(GENERATOR).items() if "lora_A" in name])
    assert values.mean().item() == pytest.approx(0, abs=4 / 16 / len(values) ** 0.5)
    assert values.std().item() == pytest.approx(1 / 16, rel=4 / (2 * len(values)) ** 0.5)
    for name, weight in kaiming.weights(GENERATOR).items():
        if "lora_A" in name:
            assert weight.abs().max().item() <= weight.shape[1] ** -0.5


def changed(roles: Roles, change: Callable[[Weights], None]) -> Weights:
    """The generator's weights, changed so that they do not fit."""
    weights = {name: weight + 1 for name, weight in roles.weights(GENERATOR).items()}
    change(weights)
    return weights


def reshape_last(weights: Weights) -> None:
    """Make the last weight one row longer."""
    name = list(weights)[-1]
    weights[name] = torch.zeros(weights[name].shape[0] + 1, weights[name].shape[1])


WRONG: dict[str, tuple[Callable[[Weights], Any], dict[str, Any]]] = {
    "missing": (
        lambda weights: weights.pop(next(iter(weights))),
        {"missing": 1, "unknown": 0, "example": "transformer_blocks.0.attn.to_q.lora_A.weight"},
    ),
    "extra": (
        lambda weights: weights.update(other=torch.zeros(1)),
        {"missing": 0, "unknown": 1, "example": "other"},
    ),
    "shape": (
        reshape_last,
        {"weight": "transformer_blocks.1.attn.to_out.0.lora_B.weight", "found": [17, 2], "expected": [16, 2]},
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_weights_that_do_not_fit_are_rejected(kind: str) -> None:
    roles = make_roles()
    change, values = WRONG[kind]
    with raises("lora-mismatch", source="some/file.safetensors", **values) as caught:
        roles.load(GENERATOR, changed(roles, change), "some/file.safetensors")
    assert caught.value.hint


@pytest.mark.parametrize("kind", WRONG)
def test_a_failed_load_changes_nothing(kind: str) -> None:
    roles = make_roles()
    before = roles.weights(GENERATOR)
    with pytest.raises(Tdmr1Error):
        roles.load(GENERATOR, changed(roles, WRONG[kind][0]), "file")
    assert all(torch.equal(weight, before[name]) for name, weight in roles.weights(GENERATOR).items())


def test_targets_without_a_match_are_rejected() -> None:
    with raises("lora-mismatch", targets=["no_such_module"]):
        Roles(make_backbone(), LoraShape(2, 4.0, ("no_such_module",)), (GENERATOR,), (), seed=0)


def test_default_targets_are_the_joint_attention_only() -> None:
    names = {name.rsplit(".lora_", 1)[0] for name in make_roles().parameters(GENERATOR)}
    first = {f"transformer_blocks.0.{target}" for target in TARGETS}
    last = {f"transformer_blocks.1.{target}" for target in TARGETS} - {"transformer_blocks.1.attn.to_add_out"}
    assert names == first | last


def test_new_roles_equal_the_teacher_and_depend_only_on_the_seed() -> None:
    shape = LoraShape(RANK, ALPHA, TARGETS)
    first, again, other = (Roles(make_backbone(), shape, (GENERATOR, FAKE), (), seed=seed) for seed in (1, 1, 2))
    with torch.no_grad():
        with first.acting(TEACHER) as backbone:
            teacher = backbone.velocity(*network_inputs())
        with first.acting(GENERATOR) as backbone:
            assert torch.equal(backbone.velocity(*network_inputs()), teacher)
    assert all(torch.equal(w, again.weights(GENERATOR)[n]) for n, w in first.weights(GENERATOR).items())
    assert not all(torch.equal(w, other.weights(GENERATOR)[n]) for n, w in first.weights(GENERATOR).items())


def test_average_is_an_exponential_moving_average() -> None:
    roles = make_roles()
    old, new = roles.weights(GENERATOR_EMA), roles.weights(GENERATOR)
    roles.average(GENERATOR_EMA, GENERATOR, 0.9)
    for name, weight in roles.weights(GENERATOR_EMA).items():
        torch.testing.assert_close(weight, 0.9 * old[name] + 0.1 * new[name], rtol=1e-12, atol=1e-15)
    assert all(torch.equal(weight, new[name]) for name, weight in roles.weights(GENERATOR).items())
    roles.average(GENERATOR_EMA, GENERATOR, 0.0)
    for name, weight in roles.weights(GENERATOR_EMA).items():
        torch.testing.assert_close(weight, new[name])
    assert not any(weight.requires_grad for weight in roles.parameters(GENERATOR_EMA).values())


def test_copies_share_no_memory() -> None:
    roles = make_roles()
    expected = roles.weights(GENERATOR)
    roles.copy(GENERATOR, FAKE)
    with torch.no_grad():
        for parameter in roles.parameters(GENERATOR).values():
            parameter.add_(1)
    for name, weight in roles.weights(FAKE).items():
        assert torch.equal(weight, expected[name])
        assert torch.equal(roles.weights(GENERATOR)[name], expected[name] + 1)
    assert not any(weight.requires_grad for weight in expected.values())
