"""The gradient of a role reaches no other role, no base weight and no reward."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from support.naive import Weights
from support.product import (
    ADVANTAGES,
    EACH,
    SECTIONS,
    UPDATES,
    engine_and_trajectory,
    gradients,
    make_engine,
    make_roles,
    network_inputs,
)
from torch import Tensor

from tdmr1_core.models.roles import (
    FAKE,
    GENERATOR,
    GENERATOR_EMA,
    REFERENCE,
    SURROGATE,
    SURROGATE_EMA,
    TEACHER,
    Roles,
)
from tdmr1_core.records import Advantages
from tdmr1_core.stages.draws import noise_for
from tdmr1_rewards.api import RewardBatch, RewardResult

pytestmark = pytest.mark.unit

ADAPTERS = (GENERATOR, FAKE, SURROGATE, GENERATOR_EMA, SURROGATE_EMA)


def live(found: Mapping[str, Tensor | None]) -> set[str]:
    """The names of the parameters whose gradient is not zero."""
    return {name for name, gradient in found.items() if gradient is not None and bool(gradient.abs().max() > 0)}


def base_weights(roles: Roles) -> Weights:
    """The parameters of the network without LoRAs."""
    return {name: weight for name, weight in roles.backbone.network.named_parameters() if "lora_" not in name}


UNUSED = {f"transformer_blocks.1.attn.add_q_proj.lora_{part}.weight" for part in "AB"}
"""The last block has no text output, so nothing depends on its text queries."""


@pytest.mark.parametrize("reference", ["frozen", "ema"])
@pytest.mark.parametrize("role", UPDATES)
def test_only_the_trained_role_gets_a_gradient(role: str, reference: str) -> None:
    engine, trajectory = engine_and_trajectory(SECTIONS | {"surrogate": {"reference": reference}})
    UPDATES[role](engine, trajectory)
    assert live(gradients(engine, role)) == engine.roles.parameters(role).keys() - UNUSED
    for name in set(ADAPTERS) - {role}:
        assert all(weight.grad is None for weight in engine.roles.parameters(name).values())
    assert all(weight.grad is None for weight in base_weights(engine.roles).values())
    assert not trajectory.latents.requires_grad


@pytest.mark.parametrize("role", UPDATES)
def test_only_the_trained_role_and_its_average_change(role: str) -> None:
    engine, trajectory = engine_and_trajectory(EACH)
    roles = engine.roles
    before = {name: roles.weights(name) for name in ADAPTERS}
    base = {name: weight.detach().clone() for name, weight in base_weights(roles).items()}
    latents, conditioning = trajectory.latents.clone(), trajectory.conditioning.embeddings.clone()
    UPDATES[role](engine, trajectory)
    changing = {role, f"{role}_ema"}
    for name in ADAPTERS:
        for key, weight in roles.weights(name).items():
            assert torch.equal(weight, before[name][key]) is (name not in changing), (name, key)
    assert all(torch.equal(weight, base[name]) for name, weight in base_weights(roles).items())
    assert all(weight.grad is None for name in ADAPTERS for weight in roles.parameters(name).values())
    assert torch.equal(trajectory.latents, latents)
    assert torch.equal(trajectory.conditioning.embeddings, conditioning)


def test_a_skipped_update_changes_nothing() -> None:
    engine, trajectory = engine_and_trajectory(EACH)
    before = {name: engine.roles.weights(name) for name in ADAPTERS}
    zero = Advantages(torch.zeros(6, dtype=torch.float64), 1.0)
    for stats in (engine.update_surrogate(trajectory, zero), engine.update_generator(trajectory, zero)):
        assert stats.skipped
    off, other = engine_and_trajectory(EACH | {"generator": {"reward_scale": 0.0}})
    assert off.update_surrogate(other, ADVANTAGES).skipped
    assert not off.update_generator(other, zero).skipped
    for name in ADAPTERS:
        assert all(torch.equal(weight, before[name][key]) for key, weight in engine.roles.weights(name).items())


@pytest.mark.parametrize("merged", [True, False])
def test_base_weights_never_require_a_gradient(merged: bool) -> None:
    roles = make_roles(merged=merged)
    for role in (*ADAPTERS, TEACHER, REFERENCE):
        with roles.acting(role):
            assert not any(weight.requires_grad for weight in base_weights(roles).values())
            for name in ADAPTERS:
                trained = name in (GENERATOR, FAKE, SURROGATE)
                assert all(weight.requires_grad is trained for weight in roles.parameters(name).values())
    for part in ("vae", "text_encoder", "text_encoder_2"):
        assert not any(weight.requires_grad for weight in getattr(roles.backbone.pipeline, part).parameters())  # type: ignore[attr-defined]


@pytest.mark.parametrize("role", [TEACHER, REFERENCE, GENERATOR_EMA, SURROGATE_EMA])
@pytest.mark.parametrize("merged", [True, False])
def test_untrained_roles_compute_without_a_graph(role: str, merged: bool) -> None:
    roles = make_roles(merged=merged)
    with roles.acting(role) as backbone:
        assert not backbone.velocity(*network_inputs()).requires_grad


def take_gradients(roles: Roles, role: str) -> Weights:
    """The gradients of a role, which are then cleared."""
    found = {}
    for name, weight in roles.parameters(role).items():
        assert weight.grad is not None
        found[name], weight.grad = weight.grad, None
    return found


@pytest.mark.parametrize("merged", [True, False])
def test_other_roles_can_be_active_between_forward_and_backward(merged: bool) -> None:
    roles = make_roles(merged=merged)
    alone = {}
    for role in (GENERATOR, FAKE, SURROGATE):
        with roles.acting(role) as backbone:
            backbone.velocity(*network_inputs()).square().sum().backward()
        alone[role] = take_gradients(roles, role)

    losses = {}
    for role in (GENERATOR, FAKE, SURROGATE):
        with roles.acting(role) as backbone:
            losses[role] = backbone.velocity(*network_inputs()).square().sum()
    with torch.no_grad():
        for other in (TEACHER, SURROGATE_EMA, GENERATOR_EMA):
            with roles.acting(other) as backbone:
                backbone.velocity(*network_inputs(1))
    with roles.acting(SURROGATE):
        losses[FAKE].backward()
    losses[GENERATOR].backward()
    with roles.acting(TEACHER):
        losses[SURROGATE].backward()
    for role, expected in alone.items():
        for name, gradient in take_gradients(roles, role).items():
            assert torch.equal(gradient, expected[name])


@pytest.mark.parametrize("reference", ["frozen", "ema"])
def test_the_generator_loss_reaches_no_other_role(reference: str) -> None:
    engine, trajectory = engine_and_trajectory(SECTIONS | {"surrogate": {"reference": reference}})
    rows, level = torch.arange(6), torch.full((6,), 0.95, dtype=torch.float64)
    noise = noise_for(0, "x", trajectory.groups, (), rows, "sample", trajectory.latents)
    terms = engine._generator.losses(trajectory, rows, torch.tensor([0, 1, 2, 3, 0, 1]), level, level, noise, noise)
    for term in (terms.total, terms.kl, terms.cfg, terms.reward):
        assert term.shape == (6,)
        others = [weight for role in (FAKE, SURROGATE) for weight in engine.roles.parameters(role).values()]
        found = torch.autograd.grad(term.sum(), others, retain_graph=True, allow_unused=True)
        assert found == (None,) * len(others)
        generator = engine.roles.parameters(GENERATOR)
        gradient = torch.autograd.grad(term.sum(), list(generator.values()), retain_graph=True)
        assert live(dict(zip(generator, gradient, strict=True))) == generator.keys() - UNUSED


def contains_tensor(thing: Any) -> bool:
    """True if dataclasses, mappings or sequences contain a tensor at any depth."""
    if isinstance(thing, Tensor):
        return True
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        return any(contains_tensor(getattr(thing, field.name)) for field in dataclasses.fields(thing))
    if isinstance(thing, Mapping):
        return any(contains_tensor(value) for value in thing.values())
    return isinstance(thing, list | tuple) and any(contains_tensor(value) for value in thing)


def test_rewards_receive_images_only() -> None:
    batches: list[RewardBatch] = []

    def reward(batch: RewardBatch) -> RewardResult:
        batches.append(copy.copy(batch))
        return RewardResult([float(i) for i in batch.image_ids])

    engine = make_engine({"batch": {"groups": 2, "group_size": 3, "micro_batch": 2}}, reward=reward)
    trajectory = engine.rollout(engine.next_groups())
    scores = engine.score(trajectory)
    engine.close()
    assert scores.total.tolist() == [0, 1, 2, 3, 4, 5]
    assert not trajectory.latents.requires_grad
    assert not scores.total.requires_grad
    assert trajectory.images is not None
    assert trajectory.images.dtype == np.uint8
    for batch in batches:
        assert isinstance(batch.images, np.ndarray)
        assert batch.images.dtype == np.uint8
        assert not contains_tensor(batch)
    assert [i for batch in batches for i in batch.image_ids] == [0, 1, 2, 3, 4, 5]
    np.testing.assert_array_equal(np.concatenate([batch.images for batch in batches]), trajectory.images)
