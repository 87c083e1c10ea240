"""Updates of all roles of a tiny engine, to compare weights between variants of the same run."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor

from support.product import ADVANTAGES, random_trajectory
from tdmr1_core.engine import Engine
from tdmr1_core.models.roles import FAKE, GENERATOR, SURROGATE

SECTIONS: dict[str, dict[str, Any]] = {
    "batch": {"groups": 2, "group_size": 3},
    "timesteps": {"per_iteration": 2, "k_sharing": "sample"},
}


def updated(engine: Engine, roles: Collection[str] = (FAKE, SURROGATE, GENERATOR)) -> dict[str, dict[str, Tensor]]:
    """The weights after two accumulated updates of these roles on a fixed trajectory."""
    trajectory = random_trajectory(engine, [prompt.text for prompt in engine.prompts[:2]], 3, stored_velocity=False)
    for step in range(2):
        if FAKE in roles:
            engine.update_fake(trajectory, step)
        if SURROGATE in roles:
            engine.update_surrogate(trajectory, ADVANTAGES, step)
        if GENERATOR in roles:
            engine.update_generator(trajectory, ADVANTAGES, step)
    return {role: engine.roles.weights(role) for role in (FAKE, SURROGATE, GENERATOR)}


def largest_difference(one: dict[str, dict[str, Tensor]], two: dict[str, dict[str, Tensor]]) -> float:
    """The largest absolute difference of any weight."""
    return max((value - two[role][name]).abs().max().item() for role in one for name, value in one[role].items())
