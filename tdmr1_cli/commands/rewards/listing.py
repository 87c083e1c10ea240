"""`tdmr1 rewards list`: the registered rewards, and whether they can be used here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tdmr1_cli.commands.plugins import find_plugins
from tdmr1_cli.commands.rewards.common import document
from tdmr1_cli.options import JsonOption
from tdmr1_cli.output import emit_json, table, warning
from tdmr1_rewards.registry import availability

if TYPE_CHECKING:
    from tdmr1_rewards.registry import RegisteredReward


def command(json: JsonOption = False) -> None:
    """List the registered rewards, and the plugins that could not be loaded.

    Your own functions need no registration: --reward also takes file.py:fn, package.module:fn and remote:URL.
    """
    plugins = find_plugins()
    entries = plugins.rewards.entries()
    broken = [record for record in plugins.records if record.error]
    if json:
        problems = [{"plugin": record.provenance.plugin, "error": record.error} for record in broken]
        emit_json(
            {"rewards": [document(entry, availability(entry.spec)) for entry in entries], "broken_plugins": problems}
        )
        return
    columns = ["reward", "what it rewards", "range", "needs", "usable here", "from"]
    table(columns, [_row(entry) for entry in entries])
    for record in broken:
        warning(f"plugin {record.provenance.plugin} (from {record.provenance}) {record.error}")


def _row(entry: RegisteredReward) -> list[str]:
    spec = entry.spec
    return [spec.name, spec.summary, spec.score_range, spec.needs or "–", _usable(entry), str(entry.provenance)]


def _usable(entry: RegisteredReward) -> str:
    if entry.rivals:
        return f"no, {', '.join(map(str, entry.rivals))} registers the same name"
    return str(availability(entry.spec))
