"""The contract kit: is a reward fit to train with? For a plugin's own tests, and for `tdmr1 rewards check`.

    from tdmr1_rewards.testing import check_reward

    def test_contract():
        check_reward("my_reward")

Checks, in order: it answers as the contract says; the same scores again, in another order, and in other batches; it
gets by without metadata; its scores differ; it prefers good examples to bad ones; and what a generator could cheat with
(a blank picture, noise, tiling, the negative, strong JPEG artefacts) does not score as well as the best good example.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tdmr1_rewards.api import Reward, RewardExample, RewardSpec
from tdmr1_rewards.calling.reference import resolve
from tdmr1_rewards.contract.checks import Check, Report, RewardChecks
from tdmr1_rewards.errors import Tdmr1Error
from tdmr1_rewards.registry import Provenance, RegisteredReward, load_plugins
from tdmr1_rewards.scoring.single_reward import SingleReward
from tdmr1_rewards.sources.foreign import adapt
from tdmr1_rewards.sources.source import create_reward, find_reward, snake_case

__all__ = ["Check", "Report", "RewardUnfit", "check_reward", "examine", "examine_built", "load_examples"]


class RewardUnfit(AssertionError):
    """A reward is not fit to train with; the message is its whole report."""

    def __init__(self, report: Report) -> None:
        super().__init__(f"{report.verdict}\n\n{report}")
        self.report = report


def check_reward(
    reward: str | Reward | Callable[..., Any] | type,
    *,
    options: Mapping[str, Any] | None = None,
    spec: RewardSpec | None = None,
    examples: Sequence[RewardExample] | None = None,
    device: str = "cpu",
) -> Report:
    """Examine a reward and raise RewardUnfit, an AssertionError, unless it is fit to train with.

    `reward` is a source (a registered name, file.py:fn …), or the object itself, of any known convention, of which
    `spec` tells the batch size and image format. `examples` stand in for those that its spec names. A report that
    warns of something is returned like any other. Raises Tdmr1Error for what cannot be found or built.
    """
    report = examine(reward, options=options, spec=spec, examples=examples, device=device)
    if not report.fit:
        raise RewardUnfit(report)
    return report


def examine(
    reward: str | Reward | Callable[..., Any] | type,
    *,
    options: Mapping[str, Any] | None = None,
    spec: RewardSpec | None = None,
    examples: Sequence[RewardExample] | None = None,
    device: str = "cpu",
) -> Report:
    """The report of `check_reward`, whatever it says."""
    found, built = _build(reward, options or {}, spec)
    return examine_built(found, built, examples=examples, device=device)


def examine_built(
    found: RegisteredReward, reward: Reward, *, examples: Sequence[RewardExample] | None = None, device: str = "cpu"
) -> Report:
    """The report on a reward that is built but not yet set up; it is closed afterwards."""
    given = list(examples) if examples is not None else load_examples(found)
    with SingleReward(found.spec, reward, found.provenance, device) as judge:
        return Report(found.spec.name, tuple(RewardChecks(judge, given, groupwise=found.spec.groupwise).checks()))


def load_examples(registered: RegisteredReward) -> list[RewardExample]:
    """The examples that a reward's spec names; none without. Raises Tdmr1Error if they cannot be had."""
    if registered.spec.examples is None:
        return []
    made = resolve(registered.spec.examples, str(registered))()
    if not isinstance(made, list) or not all(isinstance(example, RewardExample) for example in made):
        raise Tdmr1Error(f"{registered}: {registered.spec.examples} answers no list of RewardExample")
    return made


def _build(reward: Any, options: Mapping[str, Any], spec: RewardSpec | None) -> tuple[RegisteredReward, Reward]:
    """The reward with what is known of it."""
    if isinstance(reward, str):
        found = find_reward(load_plugins().rewards, reward)
        return found if spec is None else replace(found, spec=spec), create_reward(found, options)
    name = snake_case(str(getattr(reward, "__name__", type(reward).__name__)))
    known = spec or RewardSpec(name=name, summary="", factory="here:reward", default_prompts="")
    return RegisteredReward(known, Provenance("test", "this test", None, "")), adapt(reward, options, owner=name)
