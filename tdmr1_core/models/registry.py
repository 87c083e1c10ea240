"""Models by name: what to load, and how a run uses it. Listing is cheap; torch and diffusers load with a model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tdmr1_core.errors import Tdmr1Error, close_match_hint

if TYPE_CHECKING:
    import torch

    from tdmr1_core.models.protocol import Backbone

PIPELINE_FAMILIES = {"StableDiffusion3Pipeline": "sd3"}
"""Which family a directory's `model_index.json` stands for."""

ATTENTION = (
    "attn.to_q",
    "attn.to_k",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_q_proj",
    "attn.add_k_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
)
"""The published LoRA targets of SD3 and SD3.5; never `attn2`, which a bare `to_q` would match too."""


@dataclass(frozen=True)
class ModelEntry:
    """A few-step model: a frozen base, the LoRA that makes it few-step, and how it is sampled."""

    name: str
    summary: str
    family: str
    base: str
    """Directory or hub id of the multi-step base, which is also the teacher."""
    lora: str | None
    """The few-step LoRA (safetensors), or None."""
    domain: str
    """Which prompt sets fit its pictures."""
    height: int
    width: int
    steps: int = 4
    shift: float = 3.0
    teacher_steps: int = 28
    teacher_guidance: float = 4.5
    max_sequence_length: int = 256
    with_t5: bool = True
    rank: int = 32
    alpha: float = 64.0
    targets: tuple[str, ...] = ATTENTION
    default_reward: str | None = None
    default_preset: str | None = None
    distill_preset: str | None = None
    """What a distillation of the base starts from."""
    licence: str = "unknown"
    distribution: str = field(default="tdmr1")


def builtin_models() -> list[ModelEntry]:
    """The models this package ships or knows."""
    tiny = resources.files("tdmr1_core") / "tiny"
    shapes = ModelEntry(
        name="tiny-tdm",
        summary="the embedded 24-pixel world of coloured shapes: learns on two CPU cores",
        family="sd3",
        base=str(tiny / "pipeline"),
        lora=str(tiny / "student"),
        domain="tiny",
        height=24,
        width=24,
        teacher_guidance=2.5,
        max_sequence_length=0,
        with_t5=False,
        rank=32,
        alpha=64.0,
        targets=(*ATTENTION, "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
        default_reward="object_count",
        default_preset="tiny",
        distill_preset="distill-tiny",
        licence="Apache-2.0",
    )
    words = replace(
        shapes,
        name="tiny-words-tdm",
        summary="the embedded world of three-letter words, 16 x 36 pixels: learns to spell on two CPU cores",
        base=str(tiny / "words_model" / "pipeline"),
        lora=str(tiny / "words_model" / "student"),
        domain="words",
        height=16,
        width=36,
        default_reward="ocr_match",
        default_preset="tiny-words",
        distill_preset="distill-tiny-words",
    )
    return [shapes, words]


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

    def get(self, name: str, *, path: Path | None = None, lora: Path | None = None) -> ModelEntry:
        """A registered model, or a directory of a supported family, with its base or LoRA replaced on request.

        Raises Tdmr1Error for an unknown name, one that two distributions claim, a directory that is no pipeline, or a
        family that isn't supported.
        """
        if name in self._claims:
            entry, *rivals = self._claims[name]
            if rivals:
                raise Tdmr1Error(
                    f"the model {name!r} is registered by both {entry.distribution} and {rivals[0].distribution}",
                    "uninstall one of them or leave it out with TDMR1_DISABLE_PLUGINS",
                )
        elif Path(name).is_dir():
            entry = _entry_of_directory(Path(name))
        else:
            raise Tdmr1Error(f"there is no model {name!r}", close_match_hint(name, sorted(self._claims)))
        if path is not None:
            _family_of_directory(path)
            entry = replace(entry, base=str(path))
        return replace(entry, lora=str(lora)) if lora is not None else entry


def _family_of_directory(folder: Path) -> str:
    """The family of a diffusers pipeline directory."""
    index = folder / "model_index.json"
    if not index.is_file():
        raise Tdmr1Error(
            f"{folder} is not a diffusers pipeline directory", "it needs the model_index.json of save_pretrained"
        )
    kind = _read_config(index).get("_class_name")
    if kind not in PIPELINE_FAMILIES:
        raise Tdmr1Error(
            f"{folder} holds a {kind}, which is not supported", f"supported: {', '.join(PIPELINE_FAMILIES)}"
        )
    return PIPELINE_FAMILIES[kind]


def _read_config(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise Tdmr1Error(f"{path} is missing or damaged", "copy or download the whole pipeline directory") from error


def _entry_of_directory(folder: Path) -> ModelEntry:
    """A model entry for a bare pipeline directory, read from its own configs."""
    family = _family_of_directory(folder)
    index = _read_config(folder / "model_index.json")
    scheduler = _read_config(folder / "scheduler" / "scheduler_config.json")
    latents = _read_config(folder / "transformer" / "config.json").get("sample_size", 128)
    levels = _read_config(folder / "vae" / "config.json").get("block_out_channels", [0] * 4)
    pixels = latents * 2 ** (len(levels) - 1)
    with_t5 = index.get("text_encoder_3", [None])[0] is not None
    return ModelEntry(
        name=folder.name,
        summary=f"the pipeline in {folder}",
        family=family,
        base=str(folder),
        lora=None,
        domain="photo",
        height=pixels,
        width=pixels,
        shift=scheduler.get("shift", 3.0),
        with_t5=with_t5,
        max_sequence_length=256 if with_t5 else 0,
    )


def load_backbone(entry: ModelEntry, device: torch.device, precision: torch.dtype) -> Backbone:
    """The entry's frozen base, ready to be asked. Raises Tdmr1Error if it can't be loaded."""
    loader = _LOADERS[entry.family]
    try:
        return loader(entry, device, precision)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise Tdmr1Error(
            f"the model {entry.name} can't be loaded from {entry.base}: {reason}",
            "check the path, or log in to the hub",
        ) from error


def _load_sd3(entry: ModelEntry, device: torch.device, precision: torch.dtype) -> Backbone:
    from tdmr1_core.models.sd3 import SD3Backbone, load_pipeline

    pipeline = load_pipeline(entry.base, with_t5=entry.with_t5)
    return SD3Backbone(pipeline, device=device, precision=precision, max_sequence_length=entry.max_sequence_length)


_LOADERS: dict[str, Callable[[ModelEntry, torch.device, torch.dtype], Backbone]] = {"sd3": _load_sd3}
