"""What plugins may observe and veto in the engine, and how they add models (entry-point group `tdmr1`).

`engine` is the running `tdmr1_core.engine.Engine`. A hook named `before` may return a sentence: the update is then
left out, and the sentence is logged. Returning None lets it go on. Where several processes share a run each calls its
own plugins, with its own groups; a veto in one of them holds for all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tdmr1_rewards.hookspecs import hookspec

if TYPE_CHECKING:
    from tdmr1_core.engine import Engine
    from tdmr1_core.models.registry import ModelEntry
    from tdmr1_core.records import Advantages, Groups, IterationReport, Scores, Trajectory, UpdateStats


@hookspec
def tdmr1_register_models(register: Callable[[ModelEntry], None]) -> None:
    """Add models: call `register(ModelEntry(...))` for each."""


@hookspec
def tdmr1_before_rollout(engine: Engine, groups: Groups) -> None:
    """The groups of an iteration are chosen; sampling begins."""


@hookspec
def tdmr1_after_rollout(engine: Engine, trajectory: Trajectory) -> None:
    """All images are sampled and decoded."""


@hookspec
def tdmr1_after_scoring(engine: Engine, trajectory: Trajectory, scores: Scores) -> None:
    """All rewards have answered."""


@hookspec
def tdmr1_after_advantages(engine: Engine, scores: Scores, advantages: Advantages) -> None:
    """The rewards are turned into advantages."""


@hookspec
def tdmr1_before_fake_update(engine: Engine, trajectory: Trajectory) -> str | None:
    """The fake score is about to be updated; return a sentence to veto it."""


@hookspec
def tdmr1_after_fake_update(engine: Engine, stats: UpdateStats) -> None:
    """The fake score was updated."""


@hookspec
def tdmr1_before_surrogate_update(engine: Engine, trajectory: Trajectory, advantages: Advantages) -> str | None:
    """The surrogate reward is about to be updated; return a sentence to veto it."""


@hookspec
def tdmr1_after_surrogate_update(engine: Engine, stats: UpdateStats) -> None:
    """The surrogate reward was updated."""


@hookspec
def tdmr1_before_generator_update(engine: Engine, trajectory: Trajectory, advantages: Advantages | None) -> str | None:
    """The generator is about to be updated (no advantages in a distillation); return a sentence to veto it."""


@hookspec
def tdmr1_after_generator_update(engine: Engine, stats: UpdateStats) -> None:
    """The generator was updated."""


@hookspec
def tdmr1_after_iteration(engine: Engine, report: IterationReport) -> None:
    """An iteration is over."""
