"""Everything that plugins bring, found once, and the engine's hooks called one plugin at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pluggy

from tdmr1_core import hookspecs
from tdmr1_core.config import ModelConfig
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.registry import ModelEntry, ModelRegistry
from tdmr1_rewards.registry import Plugins, load_plugins


@dataclass(frozen=True)
class Extensions:
    """The plugins found, with every registered reward and model."""

    plugins: Plugins
    models: ModelRegistry

    def entry(self, model: ModelConfig) -> ModelEntry:
        """The model that settings name, with its parts replaced as they say. Raises Tdmr1Error as the registry does."""
        return self.models.get(model.name, path=model.path, lora=model.lora, teacher=model.teacher)


def discover() -> Extensions:
    """Find plugins and what they register. A broken plugin is a line in its record, never an exception."""
    plugins = load_plugins(extra_hookspecs=[hookspecs])
    models = ModelRegistry()
    for entry, provenance in plugins.collect("tdmr1_register_models", ModelEntry):
        models.register(replace(entry, distribution=str(provenance)))
    return Extensions(plugins, models)


class Hooks:
    """Calls an engine hook in every plugin that has it, so that an exception names the plugin it came from."""

    def __init__(self, manager: pluggy.PluginManager) -> None:
        self._manager = manager

    def call(self, name: str, **arguments: Any) -> list[Any]:
        """The answers other than None, in the order plugins were registered. Raises Tdmr1Error for one that raises."""
        answers = []
        for hook in getattr(self._manager.hook, name).get_hookimpls():
            try:
                answer = hook.function(*[arguments[key] for key in hook.argnames])
            except Tdmr1Error:
                raise
            except Exception as error:
                raise Tdmr1Error(
                    f"the plugin {hook.plugin_name} raised {type(error).__name__} in {name}: {error}",
                    f"leave it out with TDMR1_DISABLE_PLUGINS={hook.plugin_name}",
                ) from error
            if answer is not None:
                answers.append(answer)
        return answers

    def vetoes(self, name: str, **arguments: Any) -> Sequence[str]:
        """The reasons that plugins gave for leaving an update out."""
        return [str(reason) for reason in self.call(name, **arguments)]
