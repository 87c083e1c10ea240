"""Which weights of a model are not in the cache of the hub. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.families import FAMILIES
from tdmr1_core.models.hub import cached_snapshot
from tdmr1_core.models.loading import TEACHER_PART
from tdmr1_core.models.pipeline_files import INDEX, absent_parts, fetch, is_hub_id, is_on_hub, parts_of
from tdmr1_core.models.registry import SAME, ModelEntry
from tdmr1_rewards.builtin.optional import hub_reference, is_cached


@dataclass(frozen=True)
class MissingWeights:
    """Weights on the hub that a training would download."""

    source: str
    """The repository, or the file in it."""
    role: str
    """What they are for: base, teacher or few-step LoRA."""
    command: str
    """The command that downloads them."""
    gated: bool
    """Whether the hub requires that users accept the license first."""


def missing_weights(entry: ModelEntry, *, training: bool = True) -> Iterator[MissingWeights]:
    """What a run of a model would download. Parts of a pipeline that no run loads are not looked up."""

    def parts_of_base(folder: str) -> list[str]:
        return parts_of(folder, absent_parts(folder, FAMILIES[entry.family], with_t5=entry.with_t5))

    if is_hub_id(entry.base) and not _is_complete(entry.base, parts_of_base):
        yield MissingWeights(entry.base, "base", f"hf download {entry.base}", entry.gated)
    if entry.teacher != SAME and is_hub_id(entry.teacher) and not _is_complete(entry.teacher, lambda _: [TEACHER_PART]):
        yield MissingWeights(entry.teacher, "teacher", f"hf download {entry.teacher}", entry.teacher_gated)
    if training and entry.lora is not None and is_on_hub(entry.lora) and not _has_lora(entry.lora):
        command = " ".join(filter(None, ("hf download", *hub_reference(entry.lora))))
        yield MissingWeights(entry.lora, "few-step LoRA", command, False)


def _is_complete(repo: str, parts: Callable[[str], list[str]]) -> bool:
    """Whether the cache has all files of these parts of a pipeline, each with its full length."""
    folder = cached_snapshot(repo, [INDEX, "*/*"])
    if folder is None:
        return False
    try:
        fetch(str(folder), parts(str(folder)))
    except Tdmr1Error:
        return False
    return True


def _has_lora(source: str) -> bool:
    """Whether the cache has the file of a few-step LoRA, or a weight file in its folder."""
    repo, inside = hub_reference(source)
    if inside is not None and is_cached(source):
        return True
    folder = cached_snapshot(repo, ["*"])
    return folder is not None and any((folder / Path(inside or "")).glob("*.safetensors"))
