"""The families and models that plugins register. Listing imports neither torch nor diffusers."""

from __future__ import annotations

from dataclasses import replace

from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.families import FAMILIES, Family, add_family, remove_plugin_families
from tdmr1_core.models.registry import ModelEntry
from tdmr1_rewards.registry import Plugins


def collect_models(plugins: Plugins) -> list[ModelEntry]:
    """Add the families of plugins to `FAMILIES`, without those of an earlier call, and return the models of plugins.

    A plugin whose family conflicts with another, or whose model has an unknown family, gets an error in its record.
    """
    remove_plugin_families()
    for family, provenance in plugins.collect("tdmr1_register_families", Family):
        try:
            add_family(replace(family, distribution=str(provenance)))
        except Tdmr1Error as error:
            plugins.record_of(provenance).add_error(f"tdmr1_register_families: {error.message}")
    models = []
    for entry, provenance in plugins.collect("tdmr1_register_models", ModelEntry):
        if entry.family in FAMILIES:
            models.append(replace(entry, distribution=str(provenance)))
        else:
            plugins.record_of(provenance).add_error(
                f"tdmr1_register_models registered the model {entry.name!r} of the unknown family {entry.family!r}"
            )
    return models
