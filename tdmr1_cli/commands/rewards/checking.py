"""`tdmr1 rewards check`: is a reward fit to train with? Better known before GPU hours are spent than after."""

from __future__ import annotations

from tdmr1_cli.commands.rewards.common import DeviceOption, OptionsOption, SourceArgument, build
from tdmr1_cli.options import JsonOption
from tdmr1_cli.output import data, emit_json, message, table


def command(
    source: SourceArgument, option: OptionsOption = None, device: DeviceOption = "cpu", json: JsonOption = False
) -> int:
    """Check that a reward is fit to train with. Exit code 1 if it is not.

    Does it keep the contract; are its scores the same again, in any order and batch; does it get by without metadata;
    does it prefer its good examples to its bad ones; and can it be cheated with a blank picture, noise or tiling?
    """
    built = build(source, option or ())
    message(f"checking {built.found} …")
    from tdmr1_rewards.testing import examine_built

    report = examine_built(built.found, built.reward, device=device)
    if json:
        emit_json(report.document())
    else:
        table(["check", "", "what was found"], [[check.name, check.outcome, check.sentence] for check in report.checks])
        data(report.verdict)
    return 0 if report.fit else 1
