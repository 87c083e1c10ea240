"""No gradient ever crosses from one role to another, and none reaches the base model or a reward."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from support.naive import Weights
from support.product import (
    ADVANTAGES,
    ALPHA,
    EACH,
    RANK,
    SECTIONS,
    TARGETS,
    UPDATES,
    all_conditionings,
    engine_and_trajectory,
    gradients,
    make_backbone,
    make_engine,
    make_roles,
)
from torch import Tensor

from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.roles import (
    FAKE,
    GENERATOR,
    GENERATOR_EMA,
    REFERENCE,
    SURROGATE,
    SURROGATE_EMA,
    TEACHER,
    LoraShape,
    Roles,
)
from tdmr1_core.records import Advantages
from tdmr1_core.stages.draws import noise_for
from tdmr1_core.stages.trained_role import NotFinite, TrainedRole
from tdmr1_rewards.api import RewardBatch, RewardResult

pytestmark = pytest.mark.unit

ADAPTERS = (GENERATOR, FAKE, SURROGATE, GENERATOR_EMA, SURROGATE_EMA)


def live(found: Mapping[str, Tensor | None]) -> set[str]:
    """The names whose gradient is not zero."""
    return {name for name, gradient in found.items() if gradient is not None and bool(gradient.abs().max() > 0)}


def base_weights(roles: Roles) -> Weights:
    """Everything in the network but LoRAs."""
    return {name: weight for name, weight in roles.backbone.network.named_parameters() if "lora_" not in name}


UNUSED = {f"transformer_blocks.1.attn.add_q_proj.lora_{part}.weight" for part in "AB"}
"""The last block gives no text back, so that nothing depends on its text queries."""


@pytest.mark.parametrize("reference", ["frozen", "ema"])
@pytest.mark.parametrize("role", UPDATES)
def test_only_the_trained_role_collects_a_gradient(role: str, reference: str) -> None:
    engine, trajectory = engine_and_trajectory(SECTIONS | {"surrogate": {"reference": reference}})
    UPDATES[role](engine, trajectory)
    assert live(gradients(engine, role)) == engine.roles.parameters(role).keys() - UNUSED
    for name in set(ADAPTERS) - {role}:
        assert all(weight.grad is None for weight in engine.roles.parameters(name).values())
    assert all(weight.grad is None for weight in base_weights(engine.roles).values())
    assert not trajectory.latents.requires_grad


@pytest.mark.parametrize("role", UPDATES)
def test_only_the_trained_role_and_its_average_move(role: str) -> None:
    engine, trajectory = engine_and_trajectory(EACH)
    roles = engine.roles
    before = {name: roles.weights(name) for name in ADAPTERS}
    base = {name: weight.detach().clone() for name, weight in base_weights(roles).items()}
    latents, conditioning = trajectory.latents.clone(), trajectory.conditioning.embeddings.clone()
    UPDATES[role](engine, trajectory)
    moves = {role, f"{role}_ema"}
    for name in ADAPTERS:
        for key, weight in roles.weights(name).items():
            assert torch.equal(weight, before[name][key]) is (name not in moves), (name, key)
    assert all(torch.equal(weight, base[name]) for name, weight in base_weights(roles).items())
    assert all(weight.grad is None for name in ADAPTERS for weight in roles.parameters(name).values())
    assert torch.equal(trajectory.latents, latents)
    assert torch.equal(trajectory.conditioning.embeddings, conditioning)


def test_a_vetoed_or_silent_update_moves_nothing() -> None:
    engine, trajectory = engine_and_trajectory(EACH)
    before = {name: engine.roles.weights(name) for name in ADAPTERS}
    silent = Advantages(torch.zeros(6, dtype=torch.float64), 1.0)
    for stats in (engine.update_surrogate(trajectory, silent), engine.update_generator(trajectory, silent)):
        assert stats.skipped
    off, other = engine_and_trajectory(EACH | {"generator": {"reward_scale": 0.0}})
    assert off.update_surrogate(other, ADVANTAGES).skipped
    assert not off.update_generator(other, silent).skipped
    for name in ADAPTERS:
        assert all(torch.equal(weight, before[name][key]) for key, weight in engine.roles.weights(name).items())


def test_base_weights_never_require_a_gradient() -> None:
    roles = make_roles()
    for role in (*ADAPTERS, TEACHER, REFERENCE):
        with roles.acting(role):
            assert not any(weight.requires_grad for weight in base_weights(roles).values())
            for name in ADAPTERS:
                wanted = name in (GENERATOR, FAKE, SURROGATE)
                assert all(weight.requires_grad is wanted for weight in roles.parameters(name).values())
    for part in ("vae", "text_encoder", "text_encoder_2"):
        assert not any(weight.requires_grad for weight in getattr(roles.backbone.pipeline, part).parameters())  # type: ignore[attr-defined]


def question(seed: int = 0) -> tuple[Tensor, Tensor, Any]:
    """Latents, sigma and conditioning of two images."""
    latents = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return latents, torch.tensor([0.9, 0.4], dtype=torch.float64), all_conditionings().select([1, 2])


@pytest.mark.parametrize("role", [TEACHER, REFERENCE, GENERATOR_EMA, SURROGATE_EMA])
def test_untrained_roles_answer_without_a_graph(role: str) -> None:
    roles = make_roles()
    with roles.acting(role) as backbone:
        assert not backbone.velocity(*question()).requires_grad


def collected(roles: Roles, role: str) -> Weights:
    """A role's gradients, taken away from it."""
    found = {}
    for name, weight in roles.parameters(role).items():
        assert weight.grad is not None
        found[name], weight.grad = weight.grad, None
    return found


def test_other_roles_may_act_between_forward_and_backward() -> None:
    roles = make_roles()
    alone = {}
    for role in (GENERATOR, FAKE, SURROGATE):
        with roles.acting(role) as backbone:
            backbone.velocity(*question()).square().sum().backward()
        alone[role] = collected(roles, role)

    losses = {}
    for role in (GENERATOR, FAKE, SURROGATE):
        with roles.acting(role) as backbone:
            losses[role] = backbone.velocity(*question()).square().sum()
    with torch.no_grad():
        for other in (TEACHER, SURROGATE_EMA, GENERATOR_EMA):
            with roles.acting(other) as backbone:
                backbone.velocity(*question(1))
    with roles.acting(SURROGATE):
        losses[FAKE].backward()
    losses[GENERATOR].backward()
    with roles.acting(TEACHER):
        losses[SURROGATE].backward()
    for role, expected in alone.items():
        for name, gradient in collected(roles, role).items():
            assert torch.equal(gradient, expected[name])


def test_acting_nests_and_survives_exceptions() -> None:
    roles = make_roles()

    def answer() -> Tensor:
        with torch.no_grad():
            return roles.backbone.velocity(*question())

    answers = {}
    for role in (TEACHER, GENERATOR, FAKE):
        with roles.acting(role):
            answers[role] = answer()
    assert not torch.equal(answers[TEACHER], answers[GENERATOR])
    assert not torch.equal(answers[FAKE], answers[GENERATOR])
    assert torch.equal(answer(), answers[TEACHER])
    with roles.acting(GENERATOR):
        with pytest.raises(RuntimeError), roles.acting(FAKE):
            raise RuntimeError
        assert torch.equal(answer(), answers[GENERATOR])
        with roles.acting(TEACHER):
            assert torch.equal(answer(), answers[TEACHER])
        assert torch.equal(answer(), answers[GENERATOR])
    assert torch.equal(answer(), answers[TEACHER])
    with pytest.raises(KeyError), roles.acting("nobody"):
        pass


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
        own = engine.roles.parameters(GENERATOR)
        gradient = torch.autograd.grad(term.sum(), list(own.values()), retain_graph=True)
        assert live(dict(zip(own, gradient, strict=True))) == own.keys() - UNUSED


def holds_a_tensor(thing: Any) -> bool:
    """Whether a tensor hides anywhere in records, mappings and sequences."""
    if isinstance(thing, Tensor):
        return True
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        return any(holds_a_tensor(getattr(thing, field.name)) for field in dataclasses.fields(thing))
    if isinstance(thing, Mapping):
        return any(holds_a_tensor(value) for value in thing.values())
    return isinstance(thing, list | tuple) and any(holds_a_tensor(value) for value in thing)


def test_rewards_see_pictures_only() -> None:
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
        assert not holds_a_tensor(batch)
    assert [i for batch in batches for i in batch.image_ids] == [0, 1, 2, 3, 4, 5]
    np.testing.assert_array_equal(np.concatenate([batch.images for batch in batches]), trajectory.images)


# Roles as containers.


def changed(roles: Roles, change: Callable[[Weights], None]) -> Weights:
    """The generator's weights with something wrong."""
    weights = {name: weight + 1 for name, weight in roles.weights(GENERATOR).items()}
    change(weights)
    return weights


def reshape_last(weights: Weights) -> None:
    """Make the last weight one row longer."""
    name = list(weights)[-1]
    weights[name] = torch.zeros(weights[name].shape[0] + 1, weights[name].shape[1])


WRONG: dict[str, tuple[Callable[[Weights], Any], tuple[str, ...]]] = {
    "missing": (lambda weights: weights.pop(next(iter(weights))), ("1 ", "missing", "attn.to_q.lora_A.weight")),
    "extra": (lambda weights: weights.update(other=torch.zeros(1)), ("1 unknown", "such as other")),
    "shape": (reshape_last, ("(17, 2)", "(16, 2)", "transformer_blocks.1.attn.to_out.0.lora_B.weight")),
}


@pytest.mark.parametrize("kind", WRONG)
def test_load_names_the_source(kind: str) -> None:
    roles = make_roles()
    change, words = WRONG[kind]
    with pytest.raises(Tdmr1Error, match=r"some/file\.safetensors") as raised:
        roles.load(GENERATOR, changed(roles, change), "some/file.safetensors")
    for word in words:
        assert word in raised.value.message
    assert raised.value.hint


@pytest.mark.parametrize(
    "kind",
    [
        "missing",
        "extra",
        "shape",
    ],
)
def test_a_failed_load_changes_nothing(kind: str) -> None:
    roles = make_roles()
    before = roles.weights(GENERATOR)
    with pytest.raises(Tdmr1Error):
        roles.load(GENERATOR, changed(roles, WRONG[kind][0]), "file")
    assert all(torch.equal(weight, before[name]) for name, weight in roles.weights(GENERATOR).items())


def test_targets_that_match_nothing() -> None:
    with pytest.raises(Tdmr1Error):
        Roles(make_backbone(), LoraShape(2, 4.0, ("no_such_module",)), (GENERATOR,), (), seed=0)


def test_targets_are_the_joint_attention_alone() -> None:
    names = {name.rsplit(".lora_", 1)[0] for name in make_roles().parameters(GENERATOR)}
    first = {f"transformer_blocks.0.{target}" for target in TARGETS}
    last = {f"transformer_blocks.1.{target}" for target in TARGETS} - {"transformer_blocks.1.attn.to_add_out"}
    assert names == first | last


def test_new_roles_are_the_teacher_and_depend_on_the_seed_alone() -> None:
    shape = LoraShape(RANK, ALPHA, TARGETS)
    first, again, other = (Roles(make_backbone(), shape, (GENERATOR, FAKE), (), seed=seed) for seed in (1, 1, 2))
    with torch.no_grad():
        with first.acting(TEACHER) as backbone:
            teacher = backbone.velocity(*question())
        with first.acting(GENERATOR) as backbone:
            assert torch.equal(backbone.velocity(*question()), teacher)
    assert all(torch.equal(w, again.weights(GENERATOR)[n]) for n, w in first.weights(GENERATOR).items())
    assert not all(torch.equal(w, other.weights(GENERATOR)[n]) for n, w in first.weights(GENERATOR).items())


def test_average_is_the_moving_average() -> None:
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
    kept = roles.weights(GENERATOR)
    roles.copy(GENERATOR, FAKE)
    with torch.no_grad():
        for parameter in roles.parameters(GENERATOR).values():
            parameter.add_(1)
    for name, weight in roles.weights(FAKE).items():
        assert torch.equal(weight, kept[name])
        assert torch.equal(roles.weights(GENERATOR)[name], kept[name] + 1)
    assert not any(weight.requires_grad for weight in kept.values())


# The optimiser of a role.


def trained_role(**settings: Any) -> tuple[TrainedRole, torch.nn.Parameter]:
    """A role with one weight of two numbers."""
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    usual: dict[str, Any] = {
        "learning_rate": 0.1,
        "betas": (0.0, 0.999),
        "epsilon": 1e-12,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
    }
    return TrainedRole("fake", {"w": weight}, **usual | settings), weight


def test_a_step_by_hand() -> None:
    """AdamW's first step is lr times the sign; decay takes lr * 0.5 of the weight first."""
    role, weight = trained_role(weight_decay=0.5)
    weight.grad = torch.tensor([3.0, -4.0], dtype=torch.float64)
    assert role.step(1.0) == pytest.approx(5)
    assert weight.tolist() == pytest.approx([1 - 0.05 - 0.1, 2 - 0.1 + 0.1])
    assert weight.grad is None
    assert role.updates == 1


def test_gradients_are_clipped_and_the_rate_is_scaled() -> None:
    """With a large epsilon the step is lr g / eps, g being clipped from norm 5 to 1."""
    role, weight = trained_role(epsilon=1e6)
    weight.grad = torch.tensor([3.0, -4.0], dtype=torch.float64)
    role.step(0.5)
    assert (weight.detach() - torch.tensor([1.0, 2.0])).tolist() == pytest.approx([-0.03e-6, 0.04e-6], rel=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_refused(bad: float) -> None:
    role, weight = trained_role()
    weight.grad = torch.tensor([bad, 1.0], dtype=torch.float64)
    with pytest.raises(NotFinite, match=f"norm of the gradient is {abs(bad)}"):
        role.step(1.0)
    assert weight.tolist() == [1, 2]
    assert weight.grad is None
    assert role.updates == 0
