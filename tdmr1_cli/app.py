"""The typer app with all commands."""

from __future__ import annotations

from typing import Annotated

import typer

from tdmr1_cli.commands import (
    compare,
    config,
    distill,
    doctor,
    evaluate,
    explain,
    export,
    label,
    models,
    plan,
    plugins,
    probe,
    report,
    rewards,
    sample,
    train,
)
from tdmr1_cli.output import with_own_stdout

HELP = """Reinforce few-step text-to-image models with rewards that cannot be differentiated (TDM-R1).

\b
Try it on the embedded model (minutes on two CPU cores):
  tdmr1 train --output runs/first
  tdmr1 evaluate runs/first
  tdmr1 report runs/first
  tdmr1 export runs/first

\b
Then name your own model, reward and prompts:
  tdmr1 models list
  tdmr1 rewards list
  tdmr1 train --model MODEL --reward NAME --prompts prompts.txt --dry-run
"""
COMMANDS = (train, distill, sample, evaluate, label, export, report, compare, explain, probe, plan, plugins, doctor)
GROUPS = (config, models, rewards)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"tdmr1 {version('tdmr1')}")
        except PackageNotFoundError:
            print("tdmr1 (not installed, run from its source)")
        raise typer.Exit


def start(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Print the help if no command is given."""
    if context.invoked_subcommand is None:
        print(context.get_help())


def build_app() -> typer.Typer:
    """All commands in one app. The help is plain text, because it starts faster and may contain square brackets."""
    app = typer.Typer(
        rich_markup_mode=None,
        add_completion=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True, help=HELP)(start)
    for module in COMMANDS:
        app.command(module.__name__.rpartition(".")[2])(with_own_stdout(module.command))
    for group in GROUPS:
        app.add_typer(group.app)
    return app
