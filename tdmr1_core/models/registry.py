"""Models by name: what to load, and how a run uses it. Listing is cheap; torch and diffusers load with a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tdmr1_core.errors import Tdmr1Error, close_match_hint
from tdmr1_core.models.catalog import builtin_models
from tdmr1_core.models.entry import SAME, ModelEntry
from tdmr1_core.models.families import FAMILIES
from tdmr1_core.models.hub import is_hub_id
from tdmr1_core.models.pipeline_files import check_family, entry_of_pipeline

__all__ = ["SAME", "ModelEntry", "ModelRegistry", "builtin_models"]


class ModelRegistry:
    """Known models, from this package and from plugins (hook `tdmr1_register_models`)."""

    def __init__(self) -> None:
        self._claims: dict[str, list[ModelEntry]] = {}
        for entry in builtin_models():
            self.register(entry)

    def register(self, entry: ModelEntry) -> None:
        """Add a model. A name that is claimed twice is an error only when it is used."""
        self._claims.setdefault(entry.name, []).append(entry)

    def entries(self) -> Sequence[ModelEntry]:
        """Every model sorted by name, those that are claimed twice too."""
        return [entry for name in sorted(self._claims) for entry in self._claims[name]]

    def get(
        self, name: str, *, path: Path | None = None, lora: Path | None = None, teacher: str | None = None
    ) -> ModelEntry:
        """A registered model, or a directory or hub id of a supported family, its parts replaced on request.

        Raises Tdmr1Error for an unknown name, one that two distributions claim, a directory that is no pipeline, or a
        family that isn't supported or not the model's.
        """
        if name in self._claims:
            entry, *rivals = self._claims[name]
            if rivals:
                raise Tdmr1Error(
                    f"the model {name!r} is registered by both {entry.distribution} and {rivals[0].distribution}",
                    "uninstall one of them or leave it out with TDMR1_DISABLE_PLUGINS",
                )
        elif Path(name).is_dir() or is_hub_id(name):
            entry = entry_of_pipeline(name)
        else:
            hint = close_match_hint(name, sorted(self._claims))
            raise Tdmr1Error(f"there is no model {name!r}", f"{hint}; or name a pipeline directory or hub id")
        if path is not None:
            check_family(str(path), FAMILIES[entry.family], entry.name)
            entry = replace(entry, base=str(path))
        if teacher is not None:
            entry = entry.with_teacher(teacher)
        return replace(entry, lora=str(lora), adapter_scale=1.0, lora_alpha=None) if lora is not None else entry
