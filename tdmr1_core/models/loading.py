"""From a model's entry to what lies on disk: everything is found and checked before anything heavy is loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.entry import SAME, ModelEntry
from tdmr1_core.models.families import FAMILIES, Family
from tdmr1_core.models.hub import hub_file, hub_snapshot, is_hub_id, revision_of
from tdmr1_core.models.lora.files import LoraFile, read_lora
from tdmr1_core.models.meta_network import MetaNetwork
from tdmr1_core.models.pipeline_files import check_family, fetch, has_t5, parts_of, read_config
from tdmr1_core.models.roles import LoraShape

if TYPE_CHECKING:
    import torch

    from tdmr1_core.models.pipeline import PipelineBackbone

T5 = ("text_encoder_3", "tokenizer_3")
TEACHER_PART = "transformer"
"""All that is loaded of a second backbone: texts and pictures are the first one's."""
SHARED_CONFIGS = ("text_encoder/config.json", "vae/config.json")
NOT_COMPARED = ("_", "transformers_version", "dtype", "torch_dtype")
"""Beginnings of config keys that say nothing of what a network computes."""


@dataclass(frozen=True)
class ModelFiles:
    """A model's files, all there: local folders, the checked LoRA (None where none is used) and its shape."""

    entry: ModelEntry
    folder: Path
    teacher: Path | None
    absent: tuple[str, ...]
    """Parts of the pipeline that are left out."""
    lora: LoraFile | None
    shape: LoraShape
    """Of every LoRA of the run."""

    @property
    def family(self) -> Family:
        """The family that the model belongs to."""
        return FAMILIES[self.entry.family]

    @property
    def revision(self) -> str | None:
        """The base's commit on the hub; None for a directory."""
        return revision_of(self.folder)


def fetch_model(
    entry: ModelEntry,
    *,
    training: bool,
    rank: int | None = None,
    alpha: float | None = None,
    adapter_scale: float | None = None,
) -> ModelFiles:
    """Find, download and check a model; the few-step LoRA only for a training. Other arguments replace the entry's.

    Raises Tdmr1Error for whatever can't be had or doesn't fit: configs and LoRA first, then the large files.
    """
    check_entry(entry, training=training)
    family = FAMILIES[entry.family]
    absent = absent_parts(entry)
    shape = LoraShape(rank or entry.rank, alpha or entry.alpha, entry.targets)
    lora = None
    if training and entry.lora is not None:
        file = find_lora(entry.lora)
        skeleton = MetaNetwork(family, read_config(entry.base, f"{TEACHER_PART}/config.json"))
        scale = entry.adapter_scale if adapter_scale is None else adapter_scale
        lora = read_lora(file, skeleton, shape, alpha=alpha or entry.lora_alpha, scale=scale)
    folder = fetch(entry.base, parts_of(entry.base, absent))
    teacher = fetch(entry.teacher, [TEACHER_PART]) if entry.teacher != SAME else None
    return ModelFiles(entry, folder, teacher, absent, lora, lora.shape if lora else shape)


def identity(model_files: ModelFiles) -> str:
    """A hash of base and teacher that reads no weights: their configs, and names and sizes of weight files."""
    told = hashlib.sha256()
    for folder in filter(None, (model_files.folder, model_files.teacher)):
        for path in sorted(folder.glob("*/*")):
            if path.name in ("config.json", "scheduler_config.json"):
                told.update(f"{path.relative_to(folder)}\n".encode() + path.read_bytes())
            elif path.suffix == ".safetensors":
                told.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode())
    return told.hexdigest()


def check_entry(entry: ModelEntry, *, training: bool) -> None:
    """Look at the small files alone, before anything else is done.

    Raises Tdmr1Error for a model that can't be had, is of another family, lacks a LoRA or does not fit its teacher.
    """
    if training and entry.needs_lora and entry.lora is None:
        raise entry.missing_lora()
    family = FAMILIES[entry.family]
    check_family(entry.base, family, entry.name)
    if entry.teacher != SAME:
        _check_teacher(entry, family)


def absent_parts(entry: ModelEntry) -> tuple[str, ...]:
    """The parts of the pipeline that this model does without."""
    if entry.family != "sd3":
        return ()
    return () if entry.with_t5 and has_t5(entry.base) else T5


def find_lora(source: str) -> Path:
    """A LoRA's path, from the hub where it is owner/name or owner/name/file."""
    if Path(source).exists() or source.count("/") not in (1, 2) or Path(source).is_absolute():
        return Path(source)
    owner, name, *file = source.split("/")
    if not is_hub_id(f"{owner}/{name}"):
        return Path(source)
    return (
        hub_file(f"{owner}/{name}", file[0]) if file else hub_snapshot(f"{owner}/{name}", ["*.safetensors", "*.json"])
    )


def _check_teacher(entry: ModelEntry, family: Family) -> None:
    """Raise Tdmr1Error unless the second backbone is of the family and was made for the same texts and latents."""
    check_family(entry.teacher, family, entry.name)
    for name in SHARED_CONFIGS:
        ours, theirs = (_comparable(read_config(source, name)) for source in (entry.base, entry.teacher))
        differing = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
        if differing:
            raise Tdmr1Error(
                f"the teacher {entry.teacher} has another {name.split('/')[0]} than {entry.base} ({differing[0]})",
                "a second backbone shares texts and latents with the first: name one of the same make, or `same`",
            )


def _comparable(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.startswith(NOT_COMPARED)}


def backbone_class(family: Family) -> type[PipelineBackbone]:
    """A family's adapter to the Backbone protocol."""
    module, _, name = family.backbone.partition(":")
    found: type[PipelineBackbone] = getattr(import_module(module), name)
    return found


def load_backbone(
    model_files: ModelFiles,
    device: torch.device,
    precision: torch.dtype,
    *,
    encoders_leave: bool = False,
    denoiser_waits: bool = False,
) -> PipelineBackbone:
    """The frozen base, ready to be asked; with `encoders_leave` its text encoders stay on the CPU until needed.

    With `denoiser_waits` the denoiser stays there too, for whoever quantises it.

    Raises Tdmr1Error if diffusers can't load it.
    """
    from tdmr1_core.models.pipeline import load_pipeline

    entry, folder = model_files.entry, model_files.folder
    with _loading(entry, folder):
        pipeline = load_pipeline(model_files.family, folder, precision, model_files.absent)
    backbone = backbone_class(model_files.family)
    return backbone(
        pipeline,
        device=device,
        precision=precision,
        max_sequence_length=entry.max_sequence_length,
        encoders_leave=encoders_leave,
        denoiser_waits=denoiser_waits,
    )


def load_teacher(model_files: ModelFiles, backbone: PipelineBackbone) -> PipelineBackbone | None:
    """The second frozen backbone with the first one's other parts; None where the base is its own teacher."""
    if model_files.teacher is None:
        return None
    with _loading(model_files.entry, model_files.teacher):
        return backbone.beside(model_files.teacher)


@contextmanager
def _loading(entry: ModelEntry, folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise Tdmr1Error(
            f"the model {entry.name} can't be loaded from {folder}: {reason}", "copy or download it again"
        ) from error
