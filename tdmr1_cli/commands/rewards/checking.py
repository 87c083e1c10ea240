"""`tdmr1 rewards check`: checks whether a reward is suitable for training."""

from __future__ import annotations

from tdmr1_cli.commands.rewards.common import DeviceOption, OptionsOption, SourceArgument, build
from tdmr1_cli.options import JsonOption
from tdmr1_cli.output import data, emit_json, message, table


def command(
    source: SourceArgument, option: OptionsOption = None, device: DeviceOption = "cpu", json: JsonOption = False
) -> int:
    """Check whether a reward is suitable for training. The exit code is 1 if it is not.

    The checks: the reward keeps the contract; its scores do not change in a second call, another order or other
    batches; it works without metadata; it prefers good examples to bad ones; and it does not prefer corrupted images
    (blank, noise, tiling).
    """
    built = build(source, option or ())
    message(f"checking {built.found} …")
    from tdmr1_rewards.testing import examine_built

    report = examine_built(built.found, built.reward, device=device)
    if json:
        emit_json(report.document())
    else:
        table(["check", "", "result"], [[check.name, check.outcome, check.sentence] for check in report.checks])
        data(report.verdict)
    return 0 if report.fit else 1
