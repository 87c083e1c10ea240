"""`tdmr1 rewards`: list, describe, try, check, create and serve rewards."""

from __future__ import annotations

import typer

from tdmr1_cli.commands.rewards import checking, info, listing, new, serving, trying
from tdmr1_cli.output import with_own_stdout

VERBS = {"list": listing, "info": info, "try": trying, "check": checking, "new": new, "serve": serving}

app = typer.Typer(
    name="rewards",
    help="List rewards, describe, try, check and serve one, or create your own.",
    rich_markup_mode=None,
)
for name, verb in VERBS.items():
    app.command(name)(with_own_stdout(verb.command))
