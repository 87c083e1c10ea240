"""What is known of a model before anything of it is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.families import JOINT_ATTENTION

SAME = "same"
"""What stands for a teacher that is the few-step model's own base."""


@dataclass(frozen=True)
class ModelEntry:
    """A few-step model: a frozen base, the LoRA that makes it few-step, and how it is sampled."""

    name: str
    summary: str
    family: str
    base: str
    """Directory or hub id of the base. It is the teacher as well, unless that is another model."""
    lora: str | None
    """The few-step LoRA: a file, a directory, or owner/name/file on the hub; None where the base takes few steps."""
    domain: str
    """Which prompt sets fit its pictures."""
    height: int
    width: int
    steps: int = 4
    shift: float = 3.0
    teacher: str = SAME
    """Directory or hub id of a second frozen backbone, which then tells every score; or `same`."""
    teacher_steps: int = 28
    teacher_guidance: float = 4.5
    """Of the teacher's own pictures: v_uncond + guidance (v_cond - v_uncond), 1 for none."""
    max_sequence_length: int = 256
    with_t5: bool = True
    adapter_scale: float = 1.0
    """What the LoRA's output is multiplied by, beside alpha / rank."""
    rank: int = 32
    alpha: float = 64.0
    """Of new LoRAs, and of a LoRA file that is a list without names."""
    lora_alpha: float | Literal["rank"] | None = None
    """Alpha of a LoRA file that has names and doesn't say it; without one, such a file is refused."""
    targets: tuple[str, ...] = JOINT_ATTENTION
    needs_lora: bool = False
    """Whether a training needs a LoRA of the user's, because none is published."""
    guidance_distilled: bool = False
    """Whether guidance is built into the base: as its own teacher it is not guided once more."""
    precision: str = "fp32"
    """Of the frozen weights, unless the settings say another."""
    default_reward: str | None = None
    default_preset: str | None = None
    distill_preset: str | None = None
    """What a distillation of the base starts from."""
    licence: str = "unknown"
    """Of the base's weights."""
    gated: bool = False
    """Whether the hub gives it only to those who accepted its licence."""
    download_gb: float = 0.0
    """About how much is downloaded, in 10^9 bytes."""
    weights_gb: float = 0.0
    """About what the frozen weights take on the device in bf16, in 10^9 bytes; training needs more than that."""
    distribution: str = field(default="tdmr1")

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that this model changes in every preset."""
        changed: dict[str, Any] = {"model": {"precision": self.precision}}
        if self.guidance_distilled and self.teacher == SAME:
            changed["generator"] = {"guidance_scale": 1.0, "rl_cfg": 1.0}
        return changed

    def missing_lora(self) -> Tdmr1Error:
        """What is said of a training without a LoRA where nobody has published a few-step one."""
        return Tdmr1Error(
            f"no few-step LoRA is published for {self.name}",
            f"give your own with --lora, or make one: tdmr1 distill --model {self.name} --prompts scenes",
        )

    def with_teacher(self, teacher: str) -> ModelEntry:
        """The same few-step model beside another frozen teacher, which is sampled as multi-step models usually are."""
        if teacher == SAME:
            return self
        return replace(
            self,
            teacher=teacher,
            teacher_steps=ModelEntry.teacher_steps,
            teacher_guidance=ModelEntry.teacher_guidance,
        )
