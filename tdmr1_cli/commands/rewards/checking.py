"""`tdmr1 rewards check`: checks whether a reward is suitable for training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tdmr1_cli.commands.rewards.common import DeviceOption, OptionsOption, PythonOption, SourceArgument, build
from tdmr1_cli.options import JsonOption
from tdmr1_cli.output import data, emit_json, message, table, warning
from tdmr1_core.errors import Tdmr1Error

if TYPE_CHECKING:
    from tdmr1_cli.commands.rewards.common import Built
    from tdmr1_rewards.api import RewardExample


def command(
    source: SourceArgument,
    option: OptionsOption = None,
    device: DeviceOption = "cpu",
    python: PythonOption = None,
    json: JsonOption = False,
) -> int:
    """Check whether a reward is suitable for training. The exit code is 1 if it is not.

    The checks: the reward keeps the contract; its scores do not change in a second call, another order or other
    batches; it works without metadata; it prefers good examples to bad ones; and it does not prefer corrupted images
    (blank, noise, tiling).
    """
    built = build(source, option or (), python)
    message(f"checking {built.found} …")
    from tdmr1_rewards.testing import examine_built

    examples = _examples(built)
    report = examine_built(built.found, built.reward, examples=examples, device=device, python=built.python)
    if json:
        emit_json(report.document())
    else:
        table(["check", "", "result"], [[check.name, check.outcome, check.sentence] for check in report.checks])
        data(report.verdict)
    return 0 if report.fit else 1


def _examples(built: Built) -> list[RewardExample]:
    """The examples of the reward. Those of another environment are optional: without them, some checks are skipped."""
    from tdmr1_rewards.sources.description import load_examples

    try:
        return load_examples(built.found, built.python)
    except Tdmr1Error as error:
        if built.python is None:
            raise
        warning(f"the examples are not available from the other environment: {error.message} [{error.code}]")
        return []
