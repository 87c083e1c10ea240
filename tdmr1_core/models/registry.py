"""The registry of models. Listing imports neither torch nor diffusers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tdmr1_core.errors import Tdmr1Error, close_match_hint
from tdmr1_core.models.catalog import builtin_models
from tdmr1_core.models.entry import SAME, ModelEntry
from tdmr1_core.models.families import FAMILIES
from tdmr1_core.models.pipeline_files import check_family, entry_of_pipeline, is_hub_id

__all__ = ["SAME", "ModelEntry", "ModelRegistry", "builtin_models"]


class ModelRegistry:
    """The models of this package and of plugins (hook `tdmr1_register_models`), by name."""

    def __init__(self) -> None:
        self._claims: dict[str, list[ModelEntry]] = {}
        for entry in builtin_models():
            self.register(entry)

    def register(self, entry: ModelEntry) -> None:
        """Add a model. A name that is registered twice is an error only in `get`."""
        self._claims.setdefault(entry.name, []).append(entry)

    def entries(self) -> Sequence[ModelEntry]:
        """All models, sorted by name, including those whose name is registered twice."""
        return [entry for name in sorted(self._claims) for entry in self._claims[name]]

    def get(
        self, name: str, *, path: Path | None = None, lora: Path | None = None, teacher: str | None = None
    ) -> ModelEntry:
        """A registered model, or the pipeline in a directory or with a hub id. The other arguments replace parts of it.

        Raises Tdmr1Error for a name that is unknown or registered by two distributions, for a directory that is not a
        pipeline, and for a family that is not supported or not that of the model.
        """
        if name in self._claims:
            entry, *rivals = self._claims[name]
            if rivals:
                distributions = [entry.distribution, rivals[0].distribution]
                raise Tdmr1Error(
                    f"the model name {name!r} is registered by both {' and '.join(distributions)}",
                    "uninstall one of them, or disable it with TDMR1_DISABLE_PLUGINS",
                    code="model-invalid",
                    values={"model": name, "distributions": distributions},
                )
        elif Path(name).is_dir() or is_hub_id(name):
            entry = entry_of_pipeline(name)
        else:
            hint = close_match_hint(name, sorted(self._claims))
            raise Tdmr1Error(
                f"there is no model {name!r}",
                f"name a model, a pipeline directory or a hub id; {hint}",
                code="model-unknown",
                values={"model": name},
            )
        if path is not None:
            check_family(str(path), FAMILIES[entry.family], entry.name)
            entry = replace(entry, base=str(path))
        if teacher is not None:
            entry = entry.with_teacher(teacher)
        return replace(entry, lora=str(lora), adapter_scale=1.0, lora_alpha=None) if lora is not None else entry
