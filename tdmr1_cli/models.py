"""`tdmr1 models`: which models there are."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from tdmr1_cli.options import JsonOption
from tdmr1_cli.output import emit_json, fields, table

app = typer.Typer(name="models", help="List models and look at one.", rich_markup_mode=None)


@app.command("list")
def list_models(json: JsonOption = False) -> None:
    """The models that can be trained by name."""
    from tdmr1_core.plugins import discover

    entries = discover().models.entries()
    if json:
        emit_json([asdict(entry) for entry in entries])
        return
    rows = [[e.name, e.summary, f"{e.width}×{e.height}", str(e.steps), e.licence, e.distribution] for e in entries]
    table(["model", "what it is", "pixels", "steps", "licence", "from"], rows)


@app.command()
def info(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A model or a pipeline directory.")],
    json: JsonOption = False,
) -> None:
    """Everything known of one model."""
    from tdmr1_core.plugins import discover

    known = asdict(discover().models.get(name))
    if json:
        emit_json(known)
    else:
        shown = {key: ", ".join(value) if isinstance(value, tuple) else str(value) for key, value in known.items()}
        fields(list(shown.items()))
