"""`tdmr1 config`: all settings, the check of settings files, and the packaged presets."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tdmr1_cli.options import JsonOption, SetOption
from tdmr1_cli.output import data, emit_json, message, print_warnings, table, with_own_stdout
from tdmr1_core.errors import Tdmr1Error, raise_together
from tdmr1_core.preflight.layers import NO_PRESET, STAND_IN_REWARD, Flags, resolve_settings

if TYPE_CHECKING:
    from tdmr1_core.settings.reference import SettingReference

app = typer.Typer(name="config", help="Show, check and list settings.", rich_markup_mode=None)


@app.command()
@with_own_stdout
def show(
    preset: Annotated[
        str | None, typer.Option("--preset", metavar="PRESET", help="Packaged settings (`tdmr1 config presets`).")
    ] = None,
    sets: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Show every setting: its value with this preset and these --set, its default and its meaning.

    --json adds the accepted values, the unit, the source and the published values.
    """
    from tdmr1_core.config_loading import describe, dump, parse_assignments, read_preset, resolve

    layers = [read_preset(preset) if preset not in (None, NO_PRESET) else {}, parse_assignments(sets or ())]
    named = any("rewards" in layer for layer in layers)
    # A config needs a reward: a stand-in is used where none is set, or where only its settings are.
    config = resolve([{"rewards": [{"name": STAND_IN_REWARD}]}, *layers])
    tree = dump(config if named else config.model_copy(update={"rewards": ()}))
    settings = [
        {"name": name, "type": kind, "value": _at(tree, name), "default": default, "meaning": meaning}
        for name, kind, default, meaning in describe()
    ]
    if json:
        from tdmr1_core.settings.reference import setting_references

        known = {each.name: each for each in setting_references()}
        emit_json([{**item, **_reference(known[item["name"]])} for item in settings])
    else:
        rows = [[item["name"], _shown(item["value"]), _shown(item["default"]), item["meaning"]] for item in settings]
        table(["setting", "value", "default", "meaning"], rows)


@app.command()
@with_own_stdout
def validate(
    files: Annotated[list[Path], typer.Argument(metavar="FILE…", help="YAML files with settings.")],
    json: JsonOption = False,
) -> int:
    """Check settings files as `tdmr1 train FILE` and `tdmr1 distill FILE` do, without loading a model."""
    from tdmr1_core.planning.model_settings import check_model_settings
    from tdmr1_core.plugins import discover
    from tdmr1_core.preflight.lengths import check_file_lengths

    extensions = discover()
    wrong: dict[Path, Tdmr1Error] = {}
    for path in files:
        try:
            resolved = resolve_settings(Flags(config=path), None, extensions)
            check_model_settings(resolved.config, resolved.entry)
            print_warnings([*resolved.warnings, *check_file_lengths(resolved)], f"{path}: ")
        except Tdmr1Error as error:
            wrong[path] = error
    if json:
        emit_json([{"file": str(path), **_verdict(wrong.get(path))} for path in files])
        return 2 if wrong else 0
    raise_together([_with_path(path, error) for path, error in wrong.items()])
    for path in files:
        data(f"{path}: ok")
    return 0


@app.command()
@with_own_stdout
def presets(json: JsonOption = False) -> None:
    """List the packaged presets; `tdmr1 config show --preset NAME` shows the settings of one."""
    from tdmr1_core.config_loading import preset_names

    listed = [{"name": name, "summary": _summary(name)} for name in preset_names()]
    if json:
        emit_json(listed)
    else:
        table(["preset", "purpose"], [[item["name"], item["summary"]] for item in listed])
        message("--preset none starts from the published defaults")


def _reference(setting: SettingReference) -> dict[str, Any]:
    return {
        "values": setting.values,
        "unit": setting.unit,
        "source": setting.source,
        "published": setting.published,
    }


def _verdict(error: Tdmr1Error | None) -> dict[str, Any]:
    return {
        "valid": error is None,
        "error": error and error.message,
        "hint": error and error.hint,
        "code": error and error.code,
        "values": error.values if error else {},
    }


def _with_path(path: Path, error: Tdmr1Error) -> Tdmr1Error:
    """The error with the path of the file in front of its message."""
    if str(path) in error.message:
        return error
    return Tdmr1Error(f"{path}: {error.message}", error.hint, code=error.code, values=error.values)


def _summary(preset: str) -> str:
    """The first sentence of the comment at the top of a preset."""
    lines = (resources.files("tdmr1_core") / "presets" / f"{preset}.yaml").read_text(encoding="utf-8").splitlines()
    comment = []
    for line in lines:
        if not line.startswith("#"):
            break
        comment.append(line.lstrip("# "))
    return " ".join(comment).partition(". ")[0].rstrip(".")


def _at(tree: dict[str, Any], name: str) -> Any:
    for part in name.split("."):
        tree = tree[part]
    return tree


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(str(item.get("name")) if isinstance(item, dict) else str(item) for item in value) or "–"
    if value is None:
        return "–"
    return str(value).lower() if isinstance(value, bool) else str(value)
