"""Checks whether a reward is suitable for training, for the tests of plugins and for `tdmr1 rewards check`.

    from tdmr1_rewards.testing import check_reward

    def test_contract():
        check_reward("my_reward")

The checks, in order:

1. the reward keeps the contract: one finite score or None for each image
2. the scores are the same in a second call, in another order and in other batches
3. it works without metadata
4. its scores differ between images
5. good examples score higher than bad examples
6. corrupted images (blank, noise, tiling, negative, JPEG artifacts) score lower than the best good example
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tdmr1_rewards.api import Reward, RewardExample, RewardSpec
from tdmr1_rewards.calling.reference import Reference
from tdmr1_rewards.contract.checks import Check, Report, RewardChecks
from tdmr1_rewards.registry import Provenance, RegisteredReward, load_plugins
from tdmr1_rewards.scoring.single_reward import SingleReward
from tdmr1_rewards.sources.description import load_examples
from tdmr1_rewards.sources.foreign import adapt
from tdmr1_rewards.sources.source import create_reward, find_reward, snake_case

__all__ = ["Check", "Report", "RewardUnfit", "check_reward", "examine", "examine_built", "load_examples"]


class RewardUnfit(AssertionError):
    """A reward is not suitable for training. The message is the full report."""

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
    """Check a reward, and raise RewardUnfit (an AssertionError) if a check fails.

    `reward` is a source (a registered name, file.py:fn …) or a callable or class of any supported convention. `spec`
    replaces its spec, for example to set batch size and image format; `examples` replace the examples of its spec.
    Warnings do not raise; they are in the report. Raises Tdmr1Error if the reward cannot be found or built.
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
    """Like `check_reward`, but return the report even if a check fails."""
    found, built = _build(reward, options or {}, spec)
    return examine_built(found, built, examples=examples, device=device)


def examine_built(
    found: RegisteredReward,
    reward: Reward | Reference,
    *,
    examples: Sequence[RewardExample] | None = None,
    device: str = "cpu",
    python: Path | None = None,
) -> Report:
    """Check a reward that is built but not set up. It is closed afterwards.

    A Reference is built in another process, with the interpreter `python` or this one.
    """
    given = list(examples) if examples is not None else load_examples(found, python)
    with SingleReward(found.spec, reward, found.provenance, device, python) as single:
        return Report(found.spec.name, tuple(RewardChecks(single, given).checks()))


def _build(reward: Any, options: Mapping[str, Any], spec: RewardSpec | None) -> tuple[RegisteredReward, Reward]:
    """Find or adapt a reward and build it."""
    if isinstance(reward, str):
        found = find_reward(load_plugins().rewards, reward)
        return found if spec is None else replace(found, spec=spec), create_reward(found, options)
    name = snake_case(str(getattr(reward, "__name__", type(reward).__name__)))
    used_spec = spec or RewardSpec(name=name, summary="", factory="here:reward", default_prompts="")
    return RegisteredReward(used_spec, Provenance("test", "this test", None, "")), adapt(reward, options, owner=name)
