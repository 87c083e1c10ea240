"""The description of a model: everything that is known before its files are loaded."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.families import JOINT_ATTENTION

SAME = "same"
"""The value of `ModelEntry.teacher` when the base is its own teacher."""


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
    shift: float = 3.0
    """s of the noise schedule."""
    teacher: str = SAME
    """Directory or hub id of a second frozen backbone, used by every role but the generator; or `same`."""
    teacher_steps: int = 28
    teacher_guidance: float = 4.5
    """Guidance scale when the teacher samples images: v_uncond + guidance (v_cond - v_uncond); 1 means none."""
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
    """True if guidance is distilled into the base. It is then not guided again as its own teacher."""
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
        if self.guidance_distilled and self.teacher == SAME:
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
        """The same few-step model with another frozen teacher, which samples with the default steps and guidance."""
        if teacher == SAME:
            return self
        return replace(
            self,
            teacher=teacher,
            teacher_steps=ModelEntry.teacher_steps,
            teacher_guidance=ModelEntry.teacher_guidance,
        )
