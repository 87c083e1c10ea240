"""Finds, downloads and checks the files of a model before any weights are loaded, then loads the backbones."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tdmr1_core.config import ModelConfig
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.families import FAMILIES, Family
from tdmr1_core.models.hub import hub_file, hub_snapshot, revision_of
from tdmr1_core.models.lora.files import LoraFile, read_lora
from tdmr1_core.models.lora.matching import find_shape
from tdmr1_core.models.lora.metadata import PEFT_CONFIG, PEFT_FILES, SUFFIXES
from tdmr1_core.models.lora.shape import LoraShape
from tdmr1_core.models.meta_network import MetaNetwork
from tdmr1_core.models.pipeline_files import (
    COPY_AGAIN,
    absent_parts,
    check_family,
    fetch,
    is_on_hub,
    parts_of,
    pipeline_hash,
    read_config,
)
from tdmr1_core.models.registry import SAME, ModelEntry
from tdmr1_rewards.builtin.optional import first_line

if TYPE_CHECKING:
    import torch
    from torch import nn

    from tdmr1_core.models.pipeline import PipelineBackbone

TEACHER_PART = "transformer"
"""The only part with weights of a second backbone that is loaded. The others are those of the base."""
DECODER_PART = "vae"
SHARED_CONFIGS = ("text_encoder/config.json", "vae/config.json")
NOT_COMPARED = ("_", "transformers_version", "dtype", "torch_dtype")
"""Prefixes of config keys that do not affect what a network computes."""


@dataclass(frozen=True)
class ModelFiles:
    """The local files of a model, checked for completeness."""

    entry: ModelEntry
    folder: Path
    """The pipeline directory of the base."""
    teacher: Path | None
    """The pipeline directory of a second backbone."""
    absent: tuple[str, ...]
    """Parts of the pipeline that are not loaded."""
    lora: LoraFile | None
    """The few-step LoRA; None if the model has none or it is not needed."""
    lora_record: dict[str, Any] | None
    """A description of the few-step LoRA, also if only the weights trained from it are needed; None without one."""
    shape: LoraShape
    """The shape of every LoRA of the run."""

    @property
    def family(self) -> Family:
        """The family of the model."""
        return FAMILIES[self.entry.family]

    @property
    def revision(self) -> str | None:
        """The commit of the base on the hub; None for a local directory."""
        return revision_of(self.folder)


@dataclass(frozen=True)
class TrainedLora:
    """The names of trained weights of a generator, and the description of the few-step LoRA that they began as."""

    names: frozenset[str]
    record: dict[str, Any]


def fetch_model(
    entry: ModelEntry, model: ModelConfig | None = None, *, training: bool, trained: TrainedLora | None = None
) -> ModelFiles:
    """Find, download and check the files of a model. The few-step LoRA is read only if `training`.

    The settings `model` override rank, alpha and adapter scale of the entry. With `trained`, which replaces the
    few-step LoRA, its file is not needed; rank and alpha are those of its record. Configs and LoRA are checked before
    the large files are downloaded. Raises Tdmr1Error for files that are missing, not available or do not fit.
    """
    model = model or ModelConfig()
    check_entry(entry, training=training and trained is None)
    family = FAMILIES[entry.family]
    absent = absent_parts(entry.base, family, with_t5=entry.with_t5)
    shape = LoraShape(model.rank or entry.rank, model.alpha or entry.alpha, entry.targets)
    lora, record = None, None
    if trained is not None:
        network, record = _meta_network(entry), trained.record
        shape = find_shape(trained.names, network, LoraShape(record["rank"], record["alpha"], ()), (entry.targets,))
    elif training and entry.lora is not None:
        file = find_lora(entry.lora)
        network = _meta_network(entry)
        scale = entry.adapter_scale if model.adapter_scale is None else model.adapter_scale
        lora = read_lora(
            file,
            network,
            shape,
            alpha=model.alpha or entry.lora_alpha,
            scale=scale,
            ignore_text_encoder=model.ignore_text_encoder_lora,
        )
        shape, record = lora.shape, lora.record
    folder = fetch(entry.base, parts_of(entry.base, absent))
    teacher = fetch(entry.teacher, [TEACHER_PART, "scheduler"]) if entry.teacher != SAME else None
    return ModelFiles(entry, folder, teacher, absent, lora, record, shape)


def _meta_network(entry: ModelEntry) -> MetaNetwork:
    """The denoiser of the base, without weights."""
    return MetaNetwork(FAMILIES[entry.family], read_config(entry.base, f"{TEACHER_PART}/config.json"))


def identity(model_files: ModelFiles) -> str:
    """A hash of base and teacher: of their configs, and of the names and sizes of their weight files."""
    digest = hashlib.sha256()
    for folder in filter(None, (model_files.folder, model_files.teacher)):
        for path in sorted(folder.glob("*/*")):
            if path.name in ("config.json", "scheduler_config.json"):
                digest.update(f"{path.relative_to(folder)}\n".encode() + path.read_bytes())
            elif path.suffix == ".safetensors":
                digest.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode())
    return digest.hexdigest()


def content(model_files: ModelFiles) -> dict[str, str]:
    """A hash of configs and weights of the base, and of the teacher if it is another backbone."""
    found = {"base": pipeline_hash(model_files.folder, model_files.absent)}
    if model_files.teacher is not None:
        found["teacher"] = pipeline_hash(model_files.teacher, only=TEACHER_PART)
    return found


def check_entry(entry: ModelEntry, *, training: bool) -> None:
    """Check the small files of a model: family, few-step LoRA and teacher.

    Raises Tdmr1Error for a model that is not available, is of another family, lacks a LoRA or does not fit its teacher.
    """
    if training and entry.needs_lora and entry.lora is None:
        raise entry.missing_lora()
    family = FAMILIES[entry.family]
    check_family(entry.base, family, entry.name)
    if entry.teacher != SAME:
        _check_teacher(entry, family)


def find_lora(source: str) -> Path:
    """The local path of a LoRA. A source owner/name[/folder][/file] is downloaded from the hub."""
    if not is_on_hub(source):
        return Path(source)
    owner, name, *rest = source.split("/")
    repo, inside = f"{owner}/{name}", "/".join(rest)
    if Path(inside).suffix in SUFFIXES:
        file = hub_file(repo, inside)
        if file.name in PEFT_FILES:  # its alpha is in the config beside it
            hub_snapshot(repo, [str(Path(inside).with_name(PEFT_CONFIG))])
        return file
    return hub_snapshot(repo, [str(Path(inside) / "*.safetensors"), str(Path(inside) / "*.json")]) / inside


def _check_teacher(entry: ModelEntry, family: Family) -> None:
    """Raise Tdmr1Error unless the teacher is of the family and has the text encoder and autoencoder of the base."""
    check_family(entry.teacher, family, entry.name)
    for name in SHARED_CONFIGS:
        ours, theirs = (_comparable(read_config(source, name)) for source in (entry.base, entry.teacher))
        differing = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
        if differing:
            part = name.split("/")[0]
            raise Tdmr1Error(
                f"the {part} of the teacher {entry.teacher} differs from that of {entry.base} in {differing[0]}",
                "set model.teacher to a model with the same text encoder and autoencoder, or to `same`",
                code="teacher-mismatch",
                values={"teacher": entry.teacher, "base": entry.base, "part": part, "settings": differing},
            )


def _comparable(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.startswith(NOT_COMPARED)}


def backbone_class(family: Family) -> type[PipelineBackbone]:
    """The Backbone implementation of a family."""
    found: type[PipelineBackbone] = family.backbone_class()
    return found


def load_backbones(
    model_files: ModelFiles,
    device: torch.device,
    precision: torch.dtype,
    *,
    encoders_on_cpu: bool = False,
    denoiser_on_cpu: bool = False,
) -> tuple[PipelineBackbone, PipelineBackbone | None]:
    """Load the frozen base, and the second backbone, which shares all parts but the denoiser, if there is one.

    With `encoders_on_cpu` the text encoders stay on the CPU until they are needed. With `denoiser_on_cpu` the denoiser
    stays there until it is quantized. Raises Tdmr1Error if diffusers cannot load a pipeline.
    """
    from tdmr1_core.models.pipeline import load_pipeline

    entry, family = model_files.entry, model_files.family
    kind = backbone_class(family)
    try:
        pipeline = load_pipeline(family, model_files.folder, precision, model_files.absent)
    except Tdmr1Error:
        raise
    except Exception as error:  # for a damaged config or tokenizer, the libraries raise errors of any type
        raise _not_loaded(entry, model_files.folder, error) from error
    backbone = kind(
        pipeline,
        device=device,
        precision=precision,
        max_sequence_length=entry.max_sequence_length,
        encoders_on_cpu=encoders_on_cpu,
        denoiser_on_cpu=denoiser_on_cpu,
    )
    if model_files.teacher is None:
        return backbone, None
    try:
        return backbone, backbone.with_other_denoiser(model_files.teacher)
    except Tdmr1Error:
        raise
    except Exception as error:  # for a damaged config or tokenizer, the libraries raise errors of any type
        raise _not_loaded(entry, model_files.teacher, error) from error


def load_encoders(model_files: ModelFiles, precision: torch.dtype) -> dict[str, nn.Module]:
    """The frozen text encoders of the base, on the CPU, by the names of their parts.

    Raises Tdmr1Error if diffusers cannot load them, such as from a directory that was moved.
    """
    import torch
    from torch import nn

    from tdmr1_core.models.pipeline import _freeze, load_pipeline

    family, absent = model_files.family, (*model_files.absent, TEACHER_PART, DECODER_PART)
    try:
        pipeline = load_pipeline(family, model_files.folder, precision, absent)
    except Exception as error:  # for a damaged config or tokenizer, the libraries raise errors of any type
        raise _not_loaded(model_files.entry, model_files.folder, error) from error
    encoders = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    for encoder in encoders.values():
        _freeze(encoder, torch.device("cpu"), precision)
    return encoders


def _not_loaded(entry: ModelEntry, folder: Path, error: Exception) -> Tdmr1Error:
    reason = first_line(error)
    return Tdmr1Error(
        f"diffusers cannot load the model {entry.name} from {folder}: {reason}",
        COPY_AGAIN,
        code="model-invalid",
        values={"model": entry.name, "folder": str(folder), "reason": reason},
    )
