"""The shape of a LoRA, and a network on the meta device: names and shapes of LoRA weights without loading weights."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.families import Family

_ADAPTER = "meta"
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


class MetaNetwork:
    """The denoiser of a family on the meta device, built from its config."""

    def __init__(self, family: Family, config: Mapping[str, Any]) -> None:
        self.family = family
        self._network = build_network(family.find_class(family.transformer), config, "meta")
        self.linears = {
            name: (module.out_features, module.in_features)
            for name, module in self._network.named_modules()
            if isinstance(module, nn.Linear)
        }
        """The linear layers, to which a LoRA can be added: the shape (out, in) of each weight."""

    def lora(self, shape: LoraShape) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the weights of a LoRA, in the order of the network's parameters.

        Raises Tdmr1Error if the network lacks the target modules.
        """
        network, part = self._network, f".{_ADAPTER}."
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Already found a `peft_config`")
                inject_adapter_in_model(shape.peft(), network, adapter_name=_ADAPTER, low_cpu_mem_usage=True)
            return {
                name.replace(part, "."): tuple(weight.shape)
                for name, weight in network.named_parameters()
                if part in name
            }
        except ValueError as error:
            raise shape.targets_error(error) from error
        finally:
            for module in network.modules():
                if isinstance(module, BaseTunerLayer):
                    module.delete_adapter(_ADAPTER)
            getattr(network, "peft_config", {}).pop(_ADAPTER, None)


def build_network(kind: Any, config: Mapping[str, Any], device: str) -> nn.Module:
    """Build a network from its config, with random weights or, on the meta device, without.

    `kind` is its class, or the name of a class of diffusers.
    """
    import diffusers

    with torch.device(device):
        network: nn.Module = (getattr(diffusers, kind) if isinstance(kind, str) else kind).from_config(dict(config))
    return network
