"""The hooks of the training engine (entry points `tdmr1`).

Plugins add model families and models, observe the stages and veto updates.

A hook named `tdmr1_before_…_update` may return a reason as text: the update is then skipped and the reason is logged.
It returns None to allow the update. In a run with several processes, each process calls its own plugins with its own
groups; a veto in one process skips the update in all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from tdmr1_rewards.hookspecs import hookspec

if TYPE_CHECKING:
    from torch import Tensor

    from tdmr1_core.config import RunConfig
    from tdmr1_core.models.families import Family
    from tdmr1_core.models.registry import ModelEntry
    from tdmr1_core.models.roles import LoraWeights, Roles
    from tdmr1_core.records import Advantages, Groups, IterationReport, Prompt, Scores, Trajectory, UpdateStats


class EngineView(Protocol):
    """What a plugin may read of the engine. A plugin must not change any of it."""

    @property
    def config(self) -> RunConfig:
        """The resolved settings of the run."""

    @property
    def entry(self) -> ModelEntry:
        """The registered model."""

    @property
    def iteration_index(self) -> int:
        """The number of completed iterations."""

    @property
    def prompts(self) -> list[Prompt]:
        """The training prompts."""

    @property
    def roles(self) -> Roles:
        """The networks: `roles.names` lists them, `roles.weights(name)` returns their LoRA weights."""

    @property
    def sigmas(self) -> Tensor:
        """The noise levels of the K sampling steps, decreasing to 0: (K + 1,)."""

    @property
    def start(self) -> LoraWeights:
        """The generator's LoRA weights at the start of the run."""


@hookspec
def tdmr1_register_families(register: Callable[[Family], None]) -> None:
    """Add model families: call `register(Family(...))` for each. Called before models are registered."""


@hookspec
def tdmr1_register_models(register: Callable[[ModelEntry], None]) -> None:
    """Add models: call `register(ModelEntry(...))` for each."""


@hookspec
def tdmr1_before_rollout(engine: EngineView, groups: Groups) -> None:
    """Called after the groups of an iteration are chosen, before sampling."""


@hookspec
def tdmr1_after_rollout(engine: EngineView, trajectory: Trajectory) -> None:
    """Called after all images are sampled and decoded."""


@hookspec
def tdmr1_after_scoring(engine: EngineView, trajectory: Trajectory, scores: Scores) -> None:
    """Called after all rewards have returned their scores."""


@hookspec
def tdmr1_after_advantages(engine: EngineView, scores: Scores, advantages: Advantages) -> None:
    """Called after the advantages are computed from the scores."""


@hookspec
def tdmr1_before_fake_update(engine: EngineView, trajectory: Trajectory) -> str | None:
    """Called before an update of the fake score. Return a reason to veto the update, or None."""


@hookspec
def tdmr1_after_fake_update(engine: EngineView, stats: UpdateStats) -> None:
    """Called after an update of the fake score."""


@hookspec
def tdmr1_before_surrogate_update(engine: EngineView, trajectory: Trajectory, advantages: Advantages) -> str | None:
    """Called before an update of the surrogate reward. Return a reason to veto the update, or None."""


@hookspec
def tdmr1_after_surrogate_update(engine: EngineView, stats: UpdateStats) -> None:
    """Called after an update of the surrogate reward."""


@hookspec
def tdmr1_before_generator_update(
    engine: EngineView, trajectory: Trajectory, advantages: Advantages | None
) -> str | None:
    """Called before an update of the generator. Return a reason to veto the update, or None.

    `advantages` is None in a distillation.
    """


@hookspec
def tdmr1_after_generator_update(engine: EngineView, stats: UpdateStats) -> None:
    """Called after an update of the generator."""


@hookspec
def tdmr1_after_iteration(engine: EngineView, report: IterationReport) -> None:
    """Called at the end of an iteration."""
