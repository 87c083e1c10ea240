"""`tdmr1 rewards`: which rewards there are, and what is to be known of one before it is trained with."""

from __future__ import annotations

import typer

from tdmr1_cli.commands.rewards import checking, info, listing, new, serving, trying

VERBS = {"list": listing, "info": info, "try": trying, "check": checking, "new": new, "serve": serving}

app = typer.Typer(
    name="rewards",
    help="List rewards, look at one, try it, check it, serve it, and begin your own.",
    rich_markup_mode=None,
)
for name, verb in VERBS.items():
    app.command(name)(verb.command)
