"""The registry of models, and the entry of a model: everything that is known before its files are loaded.

Listing imports neither torch nor diffusers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from tdmr1_core.errors import Tdmr1Error, close_match_hint
from tdmr1_core.models.families import FAMILIES, JOINT_ATTENTION
from tdmr1_core.models.latent_shape import has_levels, latent_grid, pixels_per_latent
from tdmr1_core.models.noise_levels import check_scheduler, is_static
from tdmr1_core.models.pipeline_files import INDEX, check_family, family_of, has_t5, is_hub_id, read_config

SAME = "same"
"""The value of `ModelEntry.teacher` when the base is its own teacher."""

SAMPLE_SIZE = 128
"""Latents of an image of the default size along each axis, if the config does not contain it."""
PIXELS = 8
"""Pixels in a latent, if the config of the autoencoder lacks its levels."""


@dataclass(frozen=True)
class ModelEntry:
    """A few-step model: a frozen base, the LoRA that makes it few-step, and the sampling defaults."""

    name: str
    summary: str
    family: str
    base: str
    """Directory or hub id of the base. The base is also the teacher, unless `teacher` names another model."""
    lora: str | None
    """The few-step LoRA: a file, a directory, or owner/name/file on the hub. None if the base is a few-step model."""
    domain: str
    """The domain of its prompt sets: "photo", or one of the embedded worlds."""
    height: int
    """In pixels, as `width`."""
    width: int
    steps: int = 4
    shift: float | None = 3.0
    """s of the noise schedule. None: that of the pipeline, which depends on the image size and the number of steps."""
    teacher: str = SAME
    """Directory or hub id of a second frozen backbone, used by every role but the generator; or `same`."""
    teacher_steps: int = 28
    teacher_guidance: float = 4.5
    """Guidance scale when the teacher samples images: v_uncond + guidance (v_cond - v_uncond); 1 means none.

    A pipeline that combines them in another way does so for samples.
    """
    max_sequence_length: int = 256
    """Tokens of a prompt for T5 (SD3) or for the text encoder (Z-Image)."""
    with_t5: bool = True
    adapter_scale: float = 1.0
    """An additional factor of the LoRA's output, beside alpha / rank."""
    rank: int = 32
    alpha: float = 64.0
    """Rank and alpha of new LoRAs, and of a LoRA file that is a list of tensors without names."""
    lora_alpha: float | Literal["rank"] | None = None
    """Alpha of a LoRA file with names but without alpha. If this is None, such a file is rejected."""
    targets: tuple[str, ...] = JOINT_ATTENTION
    """The modules that get LoRAs: full names or suffixes."""
    needs_lora: bool = False
    """True if the user must provide the LoRA for training, because none is published."""
    guidance_distilled: bool = False
    """True if guidance is distilled into the base. It is then not guided again as its own teacher.

    The same holds for a teacher with `teacher_guidance` 1.
    """
    precision: str = "fp32"
    """Default precision of the frozen weights."""
    default_reward: str | None = None
    """The reward of a training that names none."""
    default_preset: str | None = None
    distill_preset: str | None = None
    """The default preset of a distillation of the base."""
    licence: str = "unknown"
    """The license of the base's weights."""
    gated: bool = False
    """True if the hub requires that users accept the license before a download."""
    teacher_licence: str = "unknown"
    """The license of the teacher's weights, if the teacher is another model."""
    teacher_gated: bool = False
    """As `gated`, for the teacher."""
    download_gb: float = 0.0
    """Approximate size of the download, in 10^9 bytes."""
    weights_gb: float = 0.0
    """Approximate size of the frozen weights in bf16, in 10^9 bytes. Training needs additional memory."""
    distribution: str = field(default="tdmr1")
    """The Python distribution that registers the model."""

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that this model overrides in every preset."""
        changed: dict[str, Any] = {"model": {"precision": self.precision}}
        if self.guidance_distilled and (self.teacher == SAME or self.teacher_guidance == 1.0):
            changed["generator"] = {"guidance_scale": 1.0, "rl_cfg": 1.0}
        return changed

    def missing_lora(self) -> Tdmr1Error:
        """The error for a training without a LoRA of a model that needs one."""
        return Tdmr1Error(
            f"the model {self.name} needs a few-step LoRA, and none is published",
            f"pass one with --lora, or train one with `tdmr1 distill --model {self.name} --prompts scenes`",
            code="lora-missing",
            values={"model": self.name},
        )

    def with_teacher(self, teacher: str) -> ModelEntry:
        """The same few-step model with another frozen teacher, which samples with the default steps and guidance.

        A guidance-distilled model that becomes its own teacher samples as itself.
        """
        if teacher == self.teacher:
            return self
        itself = teacher == SAME and self.guidance_distilled
        return replace(
            self,
            teacher=teacher,
            teacher_steps=self.steps if itself else ModelEntry.teacher_steps,
            teacher_guidance=1.0 if itself or FAMILIES[self.family].always_distilled else ModelEntry.teacher_guidance,
            teacher_licence=ModelEntry.teacher_licence,
            teacher_gated=False,
        )


class ModelRegistry:
    """The models of this package (`catalog.py`) and of plugins (hook `tdmr1_register_models`), by name.

    A name that is registered twice is an error only in `get`.
    """

    def __init__(self, entries: Iterable[ModelEntry]) -> None:
        self._claims: dict[str, list[ModelEntry]] = {}
        for entry in entries:
            self._claims.setdefault(entry.name, []).append(entry)
        self.names = frozenset(self._claims)

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
        elif path is not None and "/" in name:  # a directory or a hub id: `path` is where its pipeline is now
            entry = replace(entry_of_pipeline(str(path)), name=Path(name).name)
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


def entry_of_pipeline(source: str) -> ModelEntry:
    """The model entry of a pipeline that is not registered, from its configs.

    Raises Tdmr1Error if the source is not a pipeline or is not supported.
    """
    family = family_of(source)
    scheduler = read_config(source, "scheduler/scheduler_config.json")
    check_scheduler(family, scheduler)
    denoiser, autoencoder = (read_config(source, f"{part}/config.json") for part in ("transformer", "vae"))
    pixels = pixels_per_latent(autoencoder) if has_levels(autoencoder) else PIXELS
    largest = latent_grid(family, {"in_channels": 0, **denoiser}, pixels).largest
    side = int(min(denoiser.get("sample_size", SAMPLE_SIZE) * pixels, largest))
    distilled = bool(read_config(source, INDEX).get("is_distilled")) or family.always_distilled
    length = family.max_sequence_length
    with_t5 = family.optional_t5 and has_t5(source)
    if family.optional_t5 and not with_t5:
        length = 0
    elif family.length_without_guidance is not None and not denoiser.get("guidance_embeds"):
        length = family.length_without_guidance
    return ModelEntry(
        name=Path(source).name,
        summary=f"the pipeline in {source}",
        family=family.name,
        base=source,
        lora=None,
        domain="photo",
        height=side,
        width=side,
        shift=scheduler.get("shift", 3.0) if is_static(scheduler) else None,
        with_t5=with_t5,
        max_sequence_length=length,
        targets=family.targets,
        guidance_distilled=distilled,
        teacher_guidance=1.0 if distilled else ModelEntry.teacher_guidance,
        distribution=family.distribution,
    )
