"""The shape of a LoRA. Imports neither torch nor PEFT before it is put on a network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tdmr1_core.errors import Tdmr1Error

if TYPE_CHECKING:
    from peft import LoraConfig

LoraInit = Literal["gaussian", "kaiming"]


@dataclass(frozen=True)
class LoraShape:
    """Rank, alpha and target modules (full names or suffixes) of a LoRA."""

    rank: int
    alpha: float
    targets: tuple[str, ...]

    def peft(self, init: LoraInit = "kaiming") -> LoraConfig:
        """The config for PEFT. B is initialized to zero, so that a new adapter does not change the output.

        `init` is the initialization of A: "gaussian" is normal with standard deviation 1 / rank, "kaiming" is uniform
        in ±1/sqrt(input width), the default of PEFT.
        """
        from peft import LoraConfig

        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            target_modules=list(self.targets),
            init_lora_weights="gaussian" if init == "gaussian" else True,
        )

    def targets_error(self, error: ValueError) -> Tdmr1Error:
        """The error for a network that lacks the target modules; `error` is PEFT's."""
        shown = ", ".join(self.targets[:8]) + (", …" if len(self.targets) > 8 else "")
        return Tdmr1Error(
            f"the target modules {shown} of the LoRA do not fit the model: {error}",
            "check the `targets` of the model entry, or use the LoRA with the base model that it was trained on",
            code="lora-mismatch",
            values={"targets": list(self.targets)},
        )
