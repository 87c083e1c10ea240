"""The licenses of the weights of a model that are not downloaded yet. Torch is not needed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tdmr1_core.errors import RunWarning
from tdmr1_core.models.pipeline_files import is_hub_id
from tdmr1_core.models.registry import SAME, ModelEntry

NON_COMMERCIAL = "non-commercial"
"""A license with this word in its name forbids commercial use."""


class Terms(NamedTuple):
    """The terms of a repository on the hub."""

    repo: str
    license: str
    gated: bool

    @property
    def restricted(self) -> bool:
        """Whether the hub requires that users accept the license, or the license forbids commercial use."""
        return self.gated or NON_COMMERCIAL in self.license.lower()

    def __str__(self) -> str:
        gate = f"; gated: accept it at https://huggingface.co/{self.repo}" if self.gated else ""
        return f"{self.repo} ({self.license}{gate})"


def license_warnings(entry: ModelEntry) -> Iterator[RunWarning]:
    """A warning if base or teacher are gated or not for commercial use, unless their weights are in the cache."""
    terms = [Terms(entry.base, entry.licence, entry.gated)]
    if entry.teacher != SAME:
        terms.append(Terms(entry.teacher, entry.teacher_licence, entry.teacher_gated))
    restricted = [each for each in terms if each.restricted and is_hub_id(each.repo) and not _is_downloaded(each.repo)]
    if restricted:
        yield RunWarning(
            f"the weights of {entry.name} are gated or not for commercial use: {', '.join(map(str, restricted))}",
            code="model-license",
            values={"model": entry.name, "repositories": [each._asdict() for each in restricted]},
        )


def _is_downloaded(repo: str) -> bool:
    from tdmr1_core.models.hub import cached_snapshot

    weights = "transformer/*.safetensors"
    folder = cached_snapshot(repo, [weights])
    return folder is not None and any(folder.glob(weights))
