"""Finds the plugins with their rewards and models, and calls the engine hooks of each plugin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pluggy

import tdmr1_core.hookspecs as hookspecs
from tdmr1_core.config import ModelConfig
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.catalog import BUILTIN_MODELS
from tdmr1_core.models.plugin_models import collect_models
from tdmr1_core.models.registry import ModelEntry, ModelRegistry
from tdmr1_rewards.registry import Plugins, load_plugins


@dataclass(frozen=True)
class Extensions:
    """The plugins found, with every registered reward and model."""

    plugins: Plugins
    models: ModelRegistry

    def entry(self, model: ModelConfig) -> ModelEntry:
        """The model entry for the settings, with `path`, `lora` and `teacher` replaced. Raises Tdmr1Error."""
        return self.models.get(model.name, path=model.path, lora=model.lora, teacher=model.teacher)


def discover() -> Extensions:
    """Find plugins and what they register. A plugin that fails gets a line in its record; no exception is raised."""
    plugins = load_plugins(extra_hookspecs=[hookspecs])
    return Extensions(plugins, ModelRegistry([*BUILTIN_MODELS, *collect_models(plugins)]))


@dataclass(frozen=True)
class Hooks:
    """Calls an engine hook in every plugin that implements it. An exception names the plugin that raised it."""

    manager: pluggy.PluginManager

    def call(self, name: str, **arguments: Any) -> list[Any]:
        """The results other than None, in the order of registration. Raises Tdmr1Error if a plugin raises."""
        results = []
        for hook in getattr(self.manager.hook, name).get_hookimpls():
            try:
                result = hook.function(*[arguments[key] for key in hook.argnames])
            except Tdmr1Error:
                raise
            except (Exception, SystemExit) as error:
                raise Tdmr1Error(
                    f"the plugin {hook.plugin_name!r} raised {type(error).__name__} in the hook {name}: {error}",
                    f"set TDMR1_DISABLE_PLUGINS={hook.plugin_name} to disable it",
                    code="plugin-failed",
                    values={"plugin": hook.plugin_name, "hook": name, "error": f"{type(error).__name__}: {error}"},
                ) from error
            if result is not None:
                results.append(result)
        return results

    def vetoes(self, name: str, **arguments: Any) -> Sequence[str]:
        """The reasons of the plugins that veto an update. Empty if none does."""
        return [str(reason) for reason in self.call(name, **arguments)]
