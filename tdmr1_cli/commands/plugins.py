"""`tdmr1 plugins`: the plugins that were found, and their errors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tdmr1_cli.options import JsonOption
from tdmr1_cli.output import emit_json, table, warning

if TYPE_CHECKING:
    from tdmr1_rewards.registry import PluginRecord, Plugins


def command(json: JsonOption = False) -> None:
    """List the plugins with distribution, version and status.

    TDMR1_DISABLE_PLUGINS=name,… disables plugins.
    """
    plugins = find_plugins()
    listed = [_document(record) for record in plugins.records]
    if json:
        emit_json({"plugins": listed, "unmatched": list(plugins.unmatched)})
        return
    columns = ("plugin", "distribution", "version", "status")
    table(columns, [[item["plugin"], item["distribution"], item["version"] or "–", _status(item)] for item in listed])
    for name in plugins.unmatched:
        warning(f"TDMR1_DISABLE_PLUGINS names {name!r}, but no such plugin is installed")


def find_plugins() -> Plugins:
    """Find every plugin and check its hooks. The errors of a plugin are in its record; nothing is raised."""
    from tdmr1_core import hookspecs
    from tdmr1_core.models.plugin_models import collect_models
    from tdmr1_rewards.registry import load_plugins

    plugins = load_plugins(extra_hookspecs=[hookspecs])
    collect_models(plugins)
    return plugins


def _document(record: PluginRecord) -> dict[str, Any]:
    origin = record.provenance
    return {
        "plugin": origin.plugin,
        "distribution": origin.distribution,
        "version": origin.version,
        "module": origin.module,
        "disabled": record.disabled,
        "error": record.error,
    }


def _status(item: dict[str, Any]) -> str:
    return "disabled" if item["disabled"] else item["error"] or "ok"
