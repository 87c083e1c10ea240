"""The forward passes of the generator's update: surrogate and reference only where the reward term applies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from support.product import SECTIONS, engine_and_trajectory
from torch import Tensor

from tdmr1_core.engine import Engine
from tdmr1_core.models.backbone import Backbone
from tdmr1_core.models.roles import FAKE, GENERATOR, SURROGATE, SURROGATE_EMA, TEACHER, Roles
from tdmr1_core.records import Trajectory
from tdmr1_core.stages.draws import noise_for

pytestmark = pytest.mark.unit

MIXED = (0, 3, 1, 2, 3, 0)
"""The step k of each image; three are below trunc_steps = 2."""


def make(**sections: Any) -> tuple[Engine, Trajectory]:
    """An engine with trunc_steps = 2, and a trajectory of 6 images."""
    return engine_and_trajectory(SECTIONS | {"generator": {"trunc_steps": 2}} | sections)


class Passes:
    """Counts the forward passes of each role, and their rows."""

    def __init__(self, roles: Roles, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls, self.rows = Counter[str](), Counter[str]()
        self._role = ""
        acting = roles.acting

        @contextmanager
        def recorded(role: str) -> Iterator[Backbone]:
            self._role = role
            with acting(role) as backbone:
                yield backbone

        monkeypatch.setattr(roles, "acting", recorded)
        roles.backbone.network.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, network: torch.nn.Module, arguments: Sequence[Any], options: dict[str, Any]) -> None:
        self.calls[self._role] += 1
        self.rows[self._role] += len(options["hidden_states"])


def accumulate(engine: Engine, trajectory: Trajectory, steps: Sequence[int]) -> dict[str, float]:
    """The metrics of an update at the given step of each image."""
    level = torch.full((6,), 0.95, dtype=torch.float64)
    return engine._generator.accumulate(trajectory, 0, torch.tensor(steps), level, level, 1.0)


@pytest.mark.parametrize(
    ("steps", "micro_batch", "rewarded", "with_reward"),
    [
        ((1, 0, 1, 0, 1, 0), None, 6, 1),
        (MIXED, None, 3, 1),
        (MIXED, 2, 3, 3),
        ((0, 1, 2, 3, 3, 2), 2, 2, 1),
        ((2, 3, 3, 2, 2, 3), 3, 0, 0),
    ],
    ids=["all", "mixed", "mixed-2", "first-2", "none-3"],
)
@pytest.mark.parametrize("reference", ["frozen", "ema"])
def test_surrogate_and_reference_are_evaluated_only_for_rewarded_images(
    steps: Sequence[int],
    micro_batch: int | None,
    rewarded: int,
    with_reward: int,
    reference: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`rewarded` images have k < trunc_steps; `with_reward` micro-batches contain at least one of them."""
    engine, trajectory = make(
        batch={"groups": 2, "group_size": 3, "micro_batch": micro_batch},
        surrogate={"trust_region": None, "reference": reference},
    )
    passes = Passes(engine.roles, monkeypatch)
    accumulate(engine, trajectory, steps)
    micro_batches = 6 // (micro_batch or 6)
    # With the prompt and without: 2 rows for each image.
    rows = {GENERATOR: 6, FAKE: 6, TEACHER: 12, SURROGATE: 2 * rewarded}
    calls = {GENERATOR: micro_batches, FAKE: micro_batches, TEACHER: micro_batches, SURROGATE: with_reward}
    if reference == "frozen":  # in the pass of the teacher
        rows[TEACHER] += rewarded
    else:
        rows[SURROGATE_EMA], calls[SURROGATE_EMA] = rewarded, with_reward
    assert passes.rows == Counter(rows)
    assert passes.calls == Counter(calls)


@pytest.mark.parametrize("loss", ["squared", "huber"])
def test_the_losses_do_not_depend_on_the_passes_that_are_skipped(loss: str) -> None:
    engine, trajectory = make(generator={"trunc_steps": 2, "loss": loss})
    rows, level = torch.arange(6), torch.full((6,), 0.95, dtype=torch.float64)
    noise, noise_reward = (
        noise_for(0, name, trajectory.groups, (), rows, "sample", trajectory.latents) for name in ("a", "b")
    )

    def losses(rewarded: Tensor | None) -> dict[str, Tensor]:
        found = engine._generator.losses(
            trajectory, rows, torch.tensor(MIXED), level, level, noise, noise_reward, rewarded=rewarded
        )
        return {name: getattr(found, name) for name in ("total", "kl", "cfg", "reward")}

    every, needed = losses(None), losses(torch.tensor([0, 2, 5]))
    for name in ("total", "kl", "cfg"):
        torch.testing.assert_close(needed[name], every[name], rtol=1e-12, atol=1e-12)
    rewards = torch.where(torch.tensor(MIXED) < 2, every["reward"], 0)
    torch.testing.assert_close(needed["reward"], rewards, rtol=1e-12, atol=1e-12)
    assert (every["reward"] > 0).all()


def test_the_reward_metric_counts_unrewarded_images_as_zero() -> None:
    engine, trajectory = make()
    mixed = accumulate(engine, trajectory, MIXED)["loss/reward"]
    assert mixed > 0
    assert accumulate(engine, trajectory, (2, 3, 3, 2, 2, 3))["loss/reward"] == 0
    other, same = make(generator={"trunc_steps": 4})
    assert accumulate(other, same, MIXED)["loss/reward"] > mixed
