"""`tdmr1 rewards`: which rewards there are."""

from __future__ import annotations

import pkgutil
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tdmr1_cli.options import JsonOption
from tdmr1_cli.output import data, emit_json, fields, table, warning
from tdmr1_cli.plugins import find_plugins
from tdmr1_core.errors import Tdmr1Error

if TYPE_CHECKING:
    from tdmr1_rewards.registry import RegisteredReward

app = typer.Typer(name="rewards", help="List rewards and look at one.", rich_markup_mode=None)


@app.command("list")
def list_rewards(json: JsonOption = False) -> None:
    """The rewards that can be trained with; plugins that could not be loaded are named too."""
    plugins = find_plugins()
    entries = plugins.rewards.entries()
    broken = [record for record in plugins.records if record.error]
    if json:
        problems = [{"plugin": record.provenance.plugin, "error": record.error} for record in broken]
        emit_json({"rewards": [_document(entry) for entry in entries], "broken_plugins": problems})
        return
    rows = [[e.spec.name, e.spec.summary + _rivalry(e), e.spec.default_prompts, str(e.provenance)] for e in entries]
    table(["reward", "what it judges", "prompts", "from"], rows)
    for record in broken:
        warning(f"plugin {record.provenance.plugin} (from {record.provenance}) {record.error}")


@app.command()
def info(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A reward.")],
    json: JsonOption = False,
) -> None:
    """Everything known of one reward, with its options."""
    registered = find_plugins().rewards.get(name)
    options = _options(registered)
    if json:
        emit_json({**_document(registered), "option_list": options})
        return
    known = {**asdict(registered.spec), "from": str(registered.provenance)}
    fields([(key, str(value)) for key, value in known.items()])
    if options:
        data("")
        table(
            ["option", "default", "meaning"],
            [[item["name"], str(item["default"]), item["meaning"]] for item in options],
        )


def _rivalry(entry: RegisteredReward) -> str:
    others = ", ".join(map(str, entry.rivals))
    return f" (unusable: the name is claimed by {others} too)" if others else ""


def _document(entry: RegisteredReward) -> dict[str, Any]:
    origin = {"distribution": entry.provenance.distribution, "version": entry.provenance.version}
    return {**asdict(entry.spec), **origin, "rivals": [str(rival) for rival in entry.rivals]}


def _options(registered: RegisteredReward) -> list[dict[str, Any]]:
    """The reward's options as its own model declares them."""
    reference = registered.spec.options
    if reference is None:
        return []
    try:
        model = pkgutil.resolve_name(reference)
    except Exception as error:
        owner = f"reward {registered.spec.name!r} (from {registered.provenance})"
        raise Tdmr1Error(
            f"the options of {owner} could not be imported: {error}",
            "its plugin, or what it needs, is not installed properly",
        ) from error
    return [
        {
            "name": name,
            "required": field.is_required(),
            "default": "required" if field.is_required() else field.get_default(call_default_factory=True),
            "meaning": field.description or "",
        }
        for name, field in model.model_fields.items()
    ]
